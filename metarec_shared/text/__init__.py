"""Item text as vectors: any BERT, on disk or from the model hub, or one trained on the catalogue itself."""

from metarec_shared.text.features import TextFeatures, text_features

__all__ = ["TextFeatures", "text_features"]
