"""Builders of the networks the papers prune, their ONNX export, and a small trained example.

`models.zoo` names every network, `models.export` turns one into ONNX, `models.digits` holds the trained example.
Nothing here is imported by `agmc_onnx`: the compressor works on ONNX files only.
"""
