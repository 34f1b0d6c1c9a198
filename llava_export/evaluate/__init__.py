"""How good a program or a recipe is: its answers to a data set, and how far it is from the float model on a text."""
