"""OmniGen's pipeline without torchvision: a processor of texts alone."""

from __future__ import annotations

from typing import Any


def read_texts_alone() -> None:
    """Let OmniGen's pipeline take texts, without pictures, where its own processor cannot be made,
    as torchvision is missing.
    """
    from diffusers.pipelines.omnigen import pipeline_omnigen, processor_omnigen

    class Texts(processor_omnigen.OmniGenMultiModalProcessor):
        def __init__(self, tokenizer: Any, max_image_size: int) -> None:
            self.text_tokenizer, self.max_image_size = tokenizer, max_image_size
            self.collator = processor_omnigen.OmniGenCollator()

    if not hasattr(processor_omnigen, "transforms"):
        vars(pipeline_omnigen)["OmniGenMultiModalProcessor"] = Texts
