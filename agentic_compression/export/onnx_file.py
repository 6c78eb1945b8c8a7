"""A model as an ONNX graph: token ids and their mask in, logits out."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

__all__ = ["ONNX_NAME", "write_onnx"]

ONNX_NAME = "model.onnx"


def write_onnx(model: Any, path: Path) -> None:
    """Trace a dense model in float32 and write it; the weights go into a file beside the graph.

    Args:
        model: a dense transformers causal language model; it is turned into float32.
        path: of the graph.
    """
    import torch
    from torch import nn

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model.float().eval()

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits
            return found

    ids = torch.zeros((2, 7), dtype=torch.long)
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program: Any = torch.onnx.export(
            Logits().eval(),
            (ids, torch.ones_like(ids)),
            dynamo=True,
            input_names=["input_ids", "attention_mask"],
            output_names=["logits"],
            dynamic_shapes={"input_ids": sizes, "attention_mask": sizes},
            verbose=False,
        )
    program.save(path, external_data=True)
