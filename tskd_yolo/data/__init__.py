"""Data sets: Pascal VOC folders made ready for Ultralytics, and drawn images to try things on."""
