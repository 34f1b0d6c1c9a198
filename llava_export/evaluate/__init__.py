"""How good a program or a recipe is, compared with the float model: on texts."""
