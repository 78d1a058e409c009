"""What each template gets: one frozen dataclass a widget, with a help text for every field.

Templates see these and nothing else, so that a designer can read here what there is to show. A test walks the
templates and holds every name that they use against these declarations. All texts are plain: the templates
escape them.
"""

# ruff: noqa: RUF009 -- `shown` makes a `field`, which ruff does not see.
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


def shown(help_text: str) -> Any:
    """A required field with its help text."""
    return field(metadata={"help": help_text})


@dataclass(frozen=True, slots=True)
class Choice:
    """One option of a select."""

    value: str = shown("What the form sends.")
    label: str = shown("What people read.")
    selected: bool = shown("Whether it is the present choice.")


@dataclass(frozen=True, slots=True)
class ModelAction:
    """Something that may be done with a model: a button of the Models page."""

    verb: str = shown("Last part of the address that does it: load, unload or reload.")
    label: str = shown("What people read on the button.")


@dataclass(frozen=True, slots=True)
class ModelCard:
    """A model: an option of the form, a line of the status panel, a card of the Models page."""

    name: str = shown("Public name; what the form sends.")
    id: str = shown("Full id, set/name.")
    label: str = shown("Name for people.")
    best_for: str = shown("What it is best for, one sentence.")
    description: str = shown("A little more about it.")
    licence: str = shown("Licence of the weights.")
    demonstration: bool = shown("Shows how things work rather than what models can do.")
    default: bool = shown("Whether the catalogue takes it when none is named.")
    selected: bool = shown("Whether it is the present choice of the form.")
    state: Literal["waiting", "loading", "ready", "unloading", "unloaded", "failed"] = shown(
        "What it does right now."
    )
    serves: bool = shown("Whether it can be asked now: it is ready, or is loaded when somebody asks.")
    state_words: str = shown("The same in words for people.")
    percent: int = shown("0 to 100 while it loads.")
    stage: str = shown("What loading does now, in words; may be empty.")
    error: str = shown("Why it failed, in words; empty otherwise.")
    sizes: str = shown("Sizes that it offers, in words.")
    steps: int = shown("Its default number of steps.")
    device: str = shown("Where it runs and in which precision; empty until ready.")
    pace: str = shown("How long one picture takes alone, in words; empty until measured.")
    memory: str = shown("Memory that its weights hold, in words; empty unless it is loaded.")
    actions: tuple[ModelAction, ...] = shown("What the visitor may do with it; empty for most visitors.")


@dataclass(frozen=True, slots=True)
class FormView:
    """The prompt form, with what was typed and what is wrong with it."""

    prompt: str = shown("Text of the prompt box.")
    negative_prompt: str = shown("What should not be in the picture.")
    steps: str = shown("As typed, else the default.")
    guidance_scale: str = shown("As typed, else the default.")
    seed: str = shown("As typed; empty means a new one each time.")
    max_steps: int = shown("Most steps that the model takes.")
    max_guidance_scale: str = shown("Largest guidance scale that the model takes.")
    models: tuple[ModelCard, ...] = shown("All models, in the order of the catalogue.")
    model: ModelCard = shown("The chosen model.")
    sizes: tuple[Choice, ...] = shown("Sizes of the chosen model.")
    noise_schedulers: tuple[Choice, ...] = shown("Noise schedulers by name.")
    counts: tuple[Choice, ...] = shown("How many pictures, 1 to 8.")
    examples: tuple[str, ...] = shown("Prompts that the chosen model does well.")
    placeholder: str = shown("One of them, as a hint in the empty box.")
    errors: Mapping[str, str] = shown("What is wrong, by field.")
    problem: str = shown("What is wrong with the whole; empty otherwise.")
    hint: str = shown("What to do about the problem; empty otherwise.")
    open: bool = shown("Whether the advanced settings are unfolded.")


@dataclass(frozen=True, slots=True)
class Again:
    """All it takes to ask for a picture like this one; fields of a hidden form."""

    fields: tuple[tuple[str, str], ...] = shown("Names and values of the form's fields.")


@dataclass(frozen=True, slots=True)
class PictureCard:
    """One picture in any of its states."""

    id: str = shown("Id of the generation.")
    number: int = shown("1, 2, … within the batch.")
    of: int = shown("How many pictures the batch has.")
    state: Literal["waiting", "starting", "developing", "finishing", "done", "failed", "cancelled"] = shown(
        "waiting in the queue; starting without a preview yet; developing; finishing after the last step; …"
    )
    alt: str = shown("Words for the picture for those who do not see it.")
    width: int = shown("Width of the final picture in pixels.")
    height: int = shown("Height of the final picture in pixels.")
    picture: str = shown("Address of the preview (a data URI) or of the final picture; empty before.")
    download: str = shown("Address of the final picture; empty before.")
    download_name: str = shown("File name to save it under.")
    step: int = shown("Steps done.")
    total_steps: int = shown("Steps in all.")
    percent: int = shown("0 to 100.")
    place: str = shown("Place in the queue, in words; empty unless it waits.")
    time_left: str = shown("Time left, in words; empty if unknown.")
    seed: str = shown("Seed, in digits.")
    time: str = shown("Time that it took, in words; empty until done.")
    file_size: str = shown("Size of the file, in words; empty until kept.")
    made_with: str = shown("Precision, device and company, in words; empty until done.")
    notices: tuple[str, ...] = shown("Sentences about the prompt, such as a cut one.")
    error: str = shown("Why it failed, in a sentence; empty otherwise.")
    vote: Literal[-1, 0, 1] = shown("The viewer's vote; 0 for none.")
    mine: bool = shown("Whether the viewer made it (and may cancel it).")
    keys: bool = shown("Whether it gets the page's access keys.")
    again: Again = shown("The same with a new seed.")
    retry: Again = shown("The very same once more.")


@dataclass(frozen=True, slots=True)
class Stage:
    """The pictures of one batch and the stream that feeds them."""

    batch: str = shown("Id of the batch.")
    prompt: str = shown("The prompt as given.")
    long: bool = shown("Whether the prompt is too long for large letters.")
    negative_prompt: str = shown("The negative prompt as given; may be empty.")
    recipe: str = shown("Model, size, steps and so on in one line.")
    summary: str = shown("How far the batch is, in words.")
    count: int = shown("How many pictures the batch has.")
    pictures: tuple[PictureCard, ...] = shown("The pictures in order.")
    live: bool = shown("Whether something may still happen.")
    again: Again = shown("The whole batch with new seeds.")


@dataclass(frozen=True, slots=True)
class StatusPanel:
    """How the service is, when that matters to a visitor."""

    state: Literal["starting", "ready", "degraded", "failed", "busy"] = shown("What to say.")
    title: str = shown("The state in a few words; empty when there is nothing to say.")
    text: str = shown("What it means for the visitor.")
    models: tuple[ModelCard, ...] = shown("Models that load or failed.")
    poll: int = shown("Seconds after which the panel asks again; 0 for never.")


@dataclass(frozen=True, slots=True)
class RecentPrint:
    """A finished picture on the drying line."""

    href: str = shown("Page that shows it.")
    picture: str = shown("Address of the picture.")
    alt: str = shown("Its prompt.")
    width: int = shown("Pixels.")
    height: int = shown("Pixels.")


@dataclass(frozen=True, slots=True)
class StudioPage:
    """The Studio: prompt to picture."""

    title: str = shown("Title of the document.")
    section: Literal["studio"] = shown("Which entry of the navigation is current.")
    form: FormView = shown("The prompt form.")
    status: StatusPanel = shown("How the service is.")
    stage: Stage | None = shown("The batch to show, if there is one.")
    recent: tuple[RecentPrint, ...] = shown("The visitor's newest finished pictures.")
    refresh: int = shown("Seconds after which a browser without scripts asks again; 0 for never.")


@dataclass(frozen=True, slots=True)
class ModelsPage:
    """The Models page."""

    title: str = shown("Title of the document.")
    section: Literal["models"] = shown("Which entry of the navigation is current.")
    models: tuple[ModelCard, ...] = shown("All models, in the order of the catalogue.")
    poll: int = shown("Seconds after which the list asks again; 0 for never.")
    status: StatusPanel = shown("How the service is.")
    refresh: int = shown("Seconds after which a browser without scripts asks again; 0 for never.")


@dataclass(frozen=True, slots=True)
class ProblemPage:
    """A page that says what went wrong."""

    title: str = shown("Title of the document.")
    section: Literal[""] = shown("No entry of the navigation is current.")
    status_code: int = shown("HTTP status.")
    heading: str = shown("What happened, in a few words.")
    text: str = shown("What happened, in a sentence.")
    hint: str = shown("What to do now.")
    refresh: int = shown("Always 0.")


@dataclass(frozen=True, slots=True)
class CreatedFragment:
    """The answer to a submitted form: the form as sent, and the pictures."""

    title: str = shown("Title of the document from now on.")
    form: FormView = shown("The form with the values that were sent.")
    stage: Stage = shown("The new batch.")


@dataclass(frozen=True, slots=True)
class StreamFragment:
    """One message of the stream: the pictures that changed."""

    stage: Stage = shown("The batch; its pictures are those that changed.")
    pulse: bool = shown("Whether another message follows soon, so that silence means a lost connection.")


@dataclass(frozen=True, slots=True)
class FormFragment:
    """The form alone, as the answer to a wrong one or to another choice of model."""

    form: FormView = shown("The form with the values that were sent.")


@dataclass(frozen=True, slots=True)
class PictureFragment:
    """One picture alone, as the answer to a vote or a cancel."""

    picture: PictureCard = shown("The picture as it is now.")


@dataclass(frozen=True, slots=True)
class ModelsFragment:
    """The list of models alone."""

    models: tuple[ModelCard, ...] = shown("All models, in the order of the catalogue.")
    poll: int = shown("Seconds after which the list asks again; 0 for never.")


@dataclass(frozen=True, slots=True)
class ModelsChangedFragment:
    """The list and the status panel, as the answer to a button of the list."""

    models: tuple[ModelCard, ...] = shown("All models, in the order of the catalogue.")
    poll: int = shown("Seconds after which the list asks again; 0 for never.")
    status: StatusPanel = shown("How the service is.")


@dataclass(frozen=True, slots=True)
class StatusFragment:
    """The status panel alone."""

    status: StatusPanel = shown("How the service is.")


@dataclass(frozen=True, slots=True)
class ProblemFragment:
    """What is wrong, in words, for the place that the asking element points to."""

    problem: str = shown("What is wrong.")
    hint: str = shown("What to do about it; may be empty.")


@dataclass(frozen=True, slots=True)
class OfflineFragment:
    """Words for when the server cannot be reached."""
