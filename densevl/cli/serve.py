"""`densevl serve`."""

from __future__ import annotations

from typing import Annotated

from rich.markup import escape

from densevl.cli import options
from densevl.cli.shared import one_line_errors, stderr, stdout

SERVER, OFFERED, LIMITS = "The server", "What it offers", "Limits of a request"


@one_line_errors
@options.loads
def serve(
    model: Annotated[
        list[str] | None,
        options.option(
            "A model that may be asked; the option may be given several times, and the first is the default.",
            panel=OFFERED,
            values=options.MODELS,
        ),
    ] = None,
    recipes: Annotated[
        str | None,
        options.option(
            "NAME,NAME: the recipes that may be asked for. The model's default alone if left out.",
            panel=OFFERED,
            values=options.recipe_names,
            between=",",
        ),
    ] = None,
    proposals: Annotated[
        str,
        options.option(
            "NAME,NAME: what may propose regions: mini-sam (for drawings), sam, superpixels, felzenszwalb, clusters, "
            "grid.",
            panel=OFFERED,
            values=options.proposer_names,
            between=",",
        ),
    ] = options.PROPOSALS,
    scoring: options.Scoring = "winclip",
    refine: options.Refine = None,
    precision: options.Precision = options.PRECISION,
    device: Annotated[
        str | None,
        options.option(
            "Where models run: cpu, cuda, or several with commas between, each with models of its own.",
            panel=options.MODELLING,
            values=options.DEVICES,
            between=",",
        ),
    ] = None,
    host: Annotated[
        str,
        options.option("The address to listen on. 127.0.0.1 is this machine alone; 0.0.0.0 is everyone.", panel=SERVER),
    ] = "127.0.0.1",
    port: Annotated[int, options.option("The port; 0 takes a free one.", panel=SERVER, min=0, max=65535)] = 8000,
    origin: Annotated[
        str | None,
        options.option("Let the page at this address ask too: https://example.org.", panel=SERVER),
    ] = None,
    queue: Annotated[
        int, options.option("Requests that are worked on or wait; more are sent away with 503.", panel=LIMITS, min=1)
    ] = 8,
    max_body: Annotated[int, options.option("Megabytes.", panel=LIMITS, min=1)] = 20,
    max_pixels: Annotated[int, options.option("Megapixels of an image.", panel=LIMITS, min=1)] = 40,
    max_labels: Annotated[int, options.option("Labels, with their synonyms.", panel=LIMITS, min=1)] = 1000,
    bits: options.Bits = None,
) -> None:
    """Serve a page and an API: drop a photo, type words, look, and take the result along.

    The page is at the address that is printed; its API is described in docs/serve.md and /openapi.json. There is no
    password: whoever reaches the address may ask.
    """
    from densevl.serving.run import is_local
    from densevl.serving.run import serve as run
    from densevl.serving.settings import Limits, Settings

    settings = Settings(
        models=tuple(model or [options.MODEL]),
        recipes=options.listed(recipes),
        proposals=options.listed(proposals),
        devices=options.listed(device) or (None,),
        precision=precision,
        refine=refine,
        scoring=scoring,
    )
    limits = Limits(queue=queue, body=max_body, pixels=max_pixels, labels=max_labels, bits=bits)

    loading = stderr().status("loading models")

    def ready(address: str) -> None:
        loading.stop()
        stdout().print(f"densevl serve: {escape(address)} (Ctrl-C ends)")
        if not is_local(host):
            stderr().print("[yellow]warning:[/] no password and no TLS: whoever reaches this address can use it")

    with loading:
        run(settings, limits, host=host, port=port, origin=origin, ready=ready)
