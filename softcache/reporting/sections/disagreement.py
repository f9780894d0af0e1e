"""The samples on which student and teacher are furthest apart."""

from __future__ import annotations

import torch

from softcache.datasets._labels import told_label
from softcache.errors import SoftcacheError
from softcache.evaluating.measures import agreement, kl
from softcache.evaluating.predictions import Predictions
from softcache.reporting.elements import Element, element, paragraph, plain
from softcache.reporting.findings import Findings, Left, Section
from softcache.reporting.pictures import shown

PLACE = 70
TITLE = "Where student and teacher disagree most"
MOST = 12
CHUNK = 4096  # rows that are in float64 at once


def section(findings: Findings) -> Section:
    said = findings.said
    for name in ("student", "teacher"):
        if getattr(said, name) is None:
            return Left(said.why(name))
    student, teacher, viewed = said.student, said.teacher, said.viewed
    if student is None or teacher is None or viewed is None or student.labels.ndim != 1:
        return Left("The labels are no classes, so there is no top class to disagree on.")
    if student.labels.is_floating_point():
        return Left("The labels are values, so there is no top class to disagree on.")
    samples = viewed.samples
    items = []
    for place in furthest(student, teacher, MOST):
        row = int(student.rows[place])
        try:
            sample = shown(samples, row)
        except SoftcacheError as error:
            return Left(f"A sample can't be shown: {error}.")
        name = samples.names[row] if samples.names is not None else f"row {row}"
        items.append(
            element(
                "li",
                sample,
                element(
                    "div",
                    element("p", element("span", plain(name, 60), class_="quiet")),
                    element("p", f"label {plain(told_label(samples.labels, row, samples.classes), 40)}"),
                    element("p", _top(student, place, "student")),
                    element("p", _top(teacher, place, "teacher")),
                ),
            )
        )
    wide = "samples" if samples.pictures else "samples wide"
    text = (
        f"Student and teacher have the same top class in {100 * agreement(student.logits, teacher.logits):.2f} % of "
        f"{len(student.rows):,} samples of the {samples.split} split, and the mean divergence of the student from the "
        f"teacher is {kl(student.logits, teacher.logits):.3g} nats at T = 1. These are the samples of the largest "
        "divergences: often they are hard or mislabelled."
    )
    return element("div", paragraph(text), element("ul", *items, class_=wide))


def furthest(student: Predictions, teacher: Predictions, most: int) -> list[int]:
    """Places of the rows of the largest KL(teacher ‖ student) at T = 1, the largest first; those of 0 left out."""
    parts = []
    for student_bc, teacher_bc in zip(student.logits.split(CHUNK), teacher.logits.split(CHUNK), strict=True):
        ours, theirs = student_bc.double().log_softmax(1), teacher_bc.double().log_softmax(1)
        # A probability of 0, of a logit of -inf, adds nothing.
        parts.append(torch.where(theirs > -torch.inf, theirs.exp() * (theirs - ours), 0.0).sum(1))
    apart = torch.cat(parts)
    order = apart.argsort(descending=True, stable=True)[:most]
    return [int(place) for place in order if apart[place] > 1e-6]


def _top(found: Predictions, place: int, role: str) -> Element:
    logits = found.logits[place].double().softmax(0)
    top = int(logits.argmax())
    name = found.class_names[top] if found.class_names else f"class {top}"
    return element("span", f"{role} {plain(repr(name), 40)} {100 * float(logits[top]):.1f} %", class_=f"key {role}")
