"""Feature extraction, storage and identification."""
