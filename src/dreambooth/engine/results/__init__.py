"""What a run leaves behind: samples, exports, model cards, pictures drawn afterwards."""
