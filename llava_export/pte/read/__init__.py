"""A program read from its file alone: nothing in it is loaded or run.

``read_pte`` in ``program`` reads it. ``container`` says where the pieces of the file lie, ``execution_plan`` and
``xnnpack_graph`` what a method and a delegate in them do, ``weights`` which bytes are weights, and ``accounting``
gives every byte of the file to one part. ``describe`` turns the result into words and JSON.
"""
