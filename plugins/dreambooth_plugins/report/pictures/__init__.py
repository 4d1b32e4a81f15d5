"""Photographs, samples and thumbnails of a report."""
