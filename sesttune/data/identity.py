"""What a head was trained on, in a few digests, so that it can be asked for again."""

from collections.abc import Mapping
from typing import Any

from sesttune.data.trial_data import TrialData

CELLS, FEATURES, EMBEDDINGS = (
    "cells or the splits",
    "vectors of the perturbations",
    "embeddings of the controls (or their encoder)",
)


def identity(data: TrialData) -> dict[str, Any]:
    """Digests of the cells with their splits, of the features, and of the encoder."""
    return {
        "fingerprint": data.fingerprint,
        "features": data.features_sha256,
        "encoder": dict(data.encoder),
    }


def other_embeddings(
    then: Mapping[str, Any], now: Mapping[str, Any], same_cells: bool = False
) -> bool:
    """Whether embeddings come of another encoder, or of another `obsm` key where files hold them.

    An encoder is its checkpoint and its protein embeddings; of the latter older runs say nothing.

    Those of a file name no encoder: they are other ones, too, where the same cells have others.
    """
    if then["sha256"] or now["sha256"]:
        one, two = then.get("proteins"), now.get("proteins")
        return bool(then["sha256"] != now["sha256"] or (one and two and one != two))
    one, two = then.get("values"), now.get("values")
    return bool(then["path"] != now["path"] or (same_cells and one and two and one != two))


def changed(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The parts in which two identities differ, in words; what one does not say is no difference.

    Embeddings are known by their encoder, for another GPU gives other last digits; those taken
    from the files, which name none, by their values.
    """
    one, two = then["encoder"], now["encoder"]
    parts = {
        CELLS: [(then["fingerprint"], now["fingerprint"])],
        FEATURES: [(then.get("features"), now.get("features"))],
        EMBEDDINGS: [(one.get(k), two.get(k)) for k in ("sha256", "proteins", "values")],
    }
    return [part for part, pairs in parts.items() if any(a != b for a, b in pairs if a and b)]
