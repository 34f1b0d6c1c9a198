"""What ``llava benchmark`` measures: the stages of an answer, here and in other runners.

``rounds`` runs the contenders in turn and makes figures of their rounds. ``llama_cpp`` is one round of llama.cpp.
``ladders`` exports a checkpoint with one thing changed at a time. ``profile`` reads ExecuTorch's traces. ``show`` makes
tables of all of it, and ``plots`` draws it.
"""
