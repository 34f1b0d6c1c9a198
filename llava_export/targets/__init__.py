"""What a model is written as. ``pte`` is the only module here that knows ExecuTorch's compiler."""
