"""``python -m llava_export.cli.benchmark``: times a package stage by stage, and what it is compared with.

``__main__`` is the command line; ``rounds`` runs runners and peers in turn; ``llama_cpp`` is a round by that peer;
``ladders`` exports a checkpoint with one thing changed at a time; ``profile`` reads ExecuTorch's traces; ``plots``.
"""
