"""Who watches a run, and what ends it: callbacks, trackers, validation, signals, failures."""
