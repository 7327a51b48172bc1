"""Every text at CLIP's full context, padding and all, each by itself: what cut and shared texts are compared with."""

import dataclasses

import trainers.prompted_classifier as classifier
from trainers.capt.backbone import prompted_clip
from trainers.capt.bases import context

CONTEXT = 77


def watch(monkeypatch):
    """Lengths of all texts that a tower is given from now on."""
    seen, own = [], prompted_clip.encode_text_with

    def noted(transformer, positions, ln_final, projection, embeddings, *others, **more):
        seen.append(embeddings.shape[1])
        return own(transformer, positions, ln_final, projection, embeddings, *others, **more)

    for module in (prompted_clip, classifier):
        monkeypatch.setattr(module, "encode_text_with", noted)
    return seen


def uncut(monkeypatch):
    """From now on nothing is cut, and nothing is shared."""
    own = context._without_context
    monkeypatch.setattr(prompted_clip, "without_padding", lambda ids, *_: ids)
    monkeypatch.setattr(prompted_clip, "pays", lambda *_: False)
    monkeypatch.setattr(context, "_without_context", lambda *a: dataclasses.replace(own(*a), length=CONTEXT))
