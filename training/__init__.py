"""Training of the built-in tiny models. ``python -m training --help`` explains the command.

``scenes`` and ``questions`` make the data, ``tokenizer`` and ``images`` turn it into tensors. ``model`` and
``projectors`` hold the modules, ``vision_stage`` and ``answer_stage`` train them with ``optimization``. ``checkpoints``
writes the result and ``accuracy`` measures it. ``train`` does all of it in order. ``calibration`` is a
command of its own: it renders scenes to calibrate quantization with. So is ``draft``: it trains a small language model
that drafts for the tiny ones, in ``draft_stage``.
"""

# The models that can be trained, with the names of their projectors.
MODELS = {"tiny-llava": "mlp", "tiny-mobilevlm": "ldpnet", "tiny-mobilevlm-v2": "ldpnetv2"}
