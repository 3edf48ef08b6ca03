"""Data sets: other layouts made ready for Ultralytics, public sets by name, and drawn images to try things on."""
