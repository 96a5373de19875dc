"""`fedward site dataset add | list`."""

from pathlib import Path
from typing import Annotated

import typer

from client.cli_options import Home, Output, OutputFormat, print_json

dataset = typer.Typer(
    name="dataset", no_args_is_help=True, add_completion=False, help="Register data: de-identified, under a budget."
)


@dataset.command()
def add(
    source: Annotated[Path, typer.Argument(metavar="TABLE|IMAGES", help="A CSV table, or a directory of pictures.")],
    schema: Annotated[
        Path, typer.Option("--schema", metavar="FILE", help="TOML: what each column holds, and what becomes of it.")
    ],
    name: Annotated[
        str, typer.Option("--name", help="Of the data set, and of its population if its patients are new.")
    ],
    home: Home = Path(),
    classes: Annotated[
        str, typer.Option("--classes", metavar="A,B,…", help="In the order that plans use; default: as in the schema.")
    ] = "",
    weights: Annotated[
        Path | None, typer.Option("--weights", metavar="FILE", help="Of the frozen backbone, for pictures.")
    ] = None,
    sampled: Annotated[
        bool, typer.Option("--sampled", help="Open the population for plans that sample patients; for good.")
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Put these records in the place of the population's. Nothing is refunded.")
    ] = False,
    output: Output = OutputFormat.TEXT,
) -> None:
    """De-identify a table and register what is left; the table itself is only read.

    Every record ends released, quarantined or rejected. A column that the schema does not name is dropped. A table that
    shares a patient with a population joins it and spends its budget. Which patients are held out for evaluation, this
    site's own secret decides; a plan says only which share.

    Pictures: a directory of JPEG and PNG files with the table as index.csv in it, one column of which names the file.

    \b
    A schema:
        version = 1
        deid.mode = "safe_harbor"
        deid.as_of_year = 2026
        deid.columns.mrn = { action = "pseudonymise", kind = "id", role = "patient" }
        deid.columns.name = { action = "drop" }
        deid.columns.birth_date = { action = "generalise", kind = "year" }
        deid.columns.zip = { action = "generalise", kind = "zip3" }
        deid.columns.diagnosis.action = "keep"
        deid.columns.diagnosis.type = "category"
        deid.columns.diagnosis.values = ["benign", "malignant"]
        deid.columns.diagnosis.role = "label"
        deid.families.sizes.columns = ["mean radius", "mean texture"]
        deid.families.sizes.action = "keep"
        deid.families.sizes.type = "number"
        deid.families.sizes.role = "feature"

    For pictures, in the place of the features: deid.columns.file = { action = "drop", role = "image" }
    """
    from client.datasets import add_dataset
    from client.datasets_text import added_text
    from client.home import open_home
    from client.unlock import ask_passphrase

    opened = open_home(home, passphrase=ask_passphrase())
    typer.echo(f"{opened.name}: reading and de-identifying {source.name}", err=True)
    added = add_dataset(
        opened,
        source=source,
        schema_path=schema,
        name=name,
        classes=[part.strip() for part in classes.split(",") if part.strip()],
        weights=weights,
        sampled=sampled,
        replace=replace,
    )
    if output is OutputFormat.JSON:
        print_json(added.to_json())
    else:
        typer.echo(added_text(added))


@dataset.command("list")
def list_(home: Home = Path(), output: Output = OutputFormat.TEXT) -> None:
    """Show what is registered; the counts are for this site's own eyes. An agent may be running."""
    from client.data.catalogue import read_catalogue
    from client.datasets_text import catalogue_text, populations_in_words
    from client.home import open_home
    from client.site_view import SiteView
    from client.unlock import ask_passphrase

    found = read_catalogue(open_home(home, passphrase=ask_passphrase()))
    if output is OutputFormat.JSON:
        print_json(found.model_dump(mode="json"))
    else:
        typer.echo(catalogue_text(found, populations_in_words(SiteView.open(home).accounts())))
