"""Serves an exported model over HTTP.

`app` has the end points, `uploads` reads the pictures of a request within limits, `batches` queues
them for the detector, and `replies` writes the detections as json. Needs the extra ``serve``.
"""
