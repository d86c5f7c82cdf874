"""`densevl serve`."""

from __future__ import annotations

from typing import Annotated

from rich.markup import escape

from densevl.cli import options
from densevl.cli.shared import one_line_errors, stderr, stdout

SERVER, OFFERED, LIMITS = "Server", "Models and methods", "Limits of a request"


@one_line_errors
@options.loads
def serve(
    model: Annotated[
        list[str] | None,
        options.option(
            "Serve this model. May be given several times; the first is the default.",
            panel=OFFERED,
            values=options.MODELS,
        ),
    ] = None,
    recipes: Annotated[
        str | None,
        options.option(
            "Allow these recipes, NAME,NAME. Only the model's default if left out.",
            panel=OFFERED,
            values=options.recipe_names,
            between=",",
        ),
    ] = None,
    proposals: Annotated[
        str,
        options.option(
            "Allow these region proposers, NAME,NAME: mini-sam (for drawings), sam, superpixels, felzenszwalb, "
            "clusters, grid.",
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
            "Choose where models run: cpu, cuda, or several separated by commas, each with its own models.",
            panel=options.MODELLING,
            values=options.DEVICES,
            between=",",
        ),
    ] = None,
    host: Annotated[
        str,
        options.option(
            "Listen on this address. 127.0.0.1 is reachable from this machine only, 0.0.0.0 from everywhere.",
            panel=SERVER,
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int, options.option("Listen on this port; 0 takes a free one.", panel=SERVER, min=0, max=65535)
    ] = 8000,
    origin: Annotated[
        str | None,
        options.option("Also accept requests from web pages at this address: https://example.org.", panel=SERVER),
    ] = None,
    queue: Annotated[
        int, options.option("Accept this many running and waiting requests; others get a 503.", panel=LIMITS, min=1)
    ] = 8,
    max_body: Annotated[
        int, options.option("Refuse requests of more than this many megabytes.", panel=LIMITS, min=1)
    ] = 20,
    max_pixels: Annotated[
        int, options.option("Refuse images of more than this many megapixels.", panel=LIMITS, min=1)
    ] = 40,
    max_labels: Annotated[
        int, options.option("Refuse requests with more than this many labels and synonyms.", panel=LIMITS, min=1)
    ] = 1000,
    bits: options.Bits = None,
) -> None:
    """Serve a web page and an API: drop a photo, type words, view and download the result.

    The page is at the address that is printed; docs/serve.md and /openapi.json describe the API. There is no password:
    anyone who can reach the address can use it.
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
