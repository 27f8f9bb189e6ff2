"""Requantize a GGUF file to Q8_0, which llama.cpp multiplies in batches faster on a CPU than Q4_1.

python -m benchmarks.learning.requantize FROM.gguf TO.gguf     (pip install gguf)
"""

from __future__ import annotations

import importlib
import sys
from typing import Any


def requantize(source: str, target: str) -> None:
    """Write `source` to `target`, its metadata kept and every matrix as Q8_0."""
    gguf: Any = importlib.import_module("gguf")
    numpy: Any = importlib.import_module("numpy")
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":  # the writer's own
            continue
        kind, array = field.types[0], field.types[0] == gguf.GGUFValueType.ARRAY
        value = int(gguf.LlamaFileType.MOSTLY_Q8_0) if name == "general.file_type" else field.contents()
        writer.add_key_value(name, value, kind, sub_type=field.types[-1] if array else None)
    for tensor in reader.tensors:
        if tensor.tensor_type == gguf.GGMLQuantizationType.F32:
            writer.add_tensor(tensor.name, numpy.array(tensor.data))
            continue
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(numpy.float32)
        kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(tensor.name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    requantize(*sys.argv[1:3])
