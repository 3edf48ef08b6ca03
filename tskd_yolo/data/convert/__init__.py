"""Data in other layouts made ready for Ultralytics: one module per layout, and what they share in ``common``.

A layout's module reads files and tells, image by image, what is there (:class:`~tskd_yolo.data.convert.common.Found`).
Checking, splitting and writing are done once, in :func:`~tskd_yolo.data.convert.common.build`.
"""
