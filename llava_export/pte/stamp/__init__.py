"""Stamping: lower three layers of a stack, then copy the middle one and give each copy its own weights.

Lowering every layer takes seconds a layer, and the results differ only in their weights. Stamping takes the same time
for any number of layers, and the program gives bit-identical outputs. The words of this folder:

- A *template* is one method of the model with three layers a stack and random weights, lowered in the ordinary way.
- A *blob* is some bytes of a weight in the form that XNNPACK reads, with the key under which a delegate looks them up.
  The key is a digest of the bytes. A quantized weight has two blobs: its values and its scales.
- A *slot* is a place in a delegate that holds one blob. It says which: blob 0 of ``layers.1.mlp.down_proj.weight``.
- A *repeat* is the part of the template's graph that occurs once for every layer. Its nodes are the *body*.
- To *stamp* is to copy the body for every further layer, and to fill all slots with the blobs of the real weights.

Linears of a stack may have different schemes. Then there is a template for each scheme.

``packing`` makes blobs, ``repeat`` finds the body, ``template`` finds the slots, ``schemes`` finds the delegate of each
linear, ``graph`` stamps one method, and ``stamp`` does all of it for a program. ``models.names`` lists the names that a
weight has on its way.
"""
