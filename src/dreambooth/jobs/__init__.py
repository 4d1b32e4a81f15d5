"""From a job file to a `Job` and back: read with places, checked, explained, written out."""
