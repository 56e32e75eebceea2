"""Z-Image Omni mixes its own bfloat16 tensors with those of the model."""

from workers.pipelines.families.quirk import Quirk

QUIRK = Quirk(classes=frozenset({"ZImageOmniPipeline"}), dtype="bfloat16")
