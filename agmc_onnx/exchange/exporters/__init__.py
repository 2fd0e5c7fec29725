"""ONNX to other formats and runtimes; a row of `table.EXPORTERS` each."""
