"""A site's own enrolment: read again for the telephone, and made anew with another node key."""

import os
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec

from client.home import SiteHome
from client.node_files import read_courier_settings
from client.node_key import make_node_key, public_path, public_text, read_public_key, write_node_key
from client.pinning import as_owner
from common.crypto.keys import SigningKey, VerifyKey
from common.enrolment import Enrolment, read_enrolment, write_enrolment
from common.errors import ConfigurationError, OutputExists, TrustError
from common.settings import parse_settings

ENROLMENT_FILE: Final = "enrolment.json"
_ELSEWHERE: Final = "as root, or as the courier's user; name its directory with --courier DIR"


def new_enrolment(
    identity: SigningKey, name: str, node_key: ec.EllipticCurvePrivateKey, nominal_patients: int
) -> Enrolment:
    """What a site will let be known of itself; raises ConfigurationError if a value is malformed."""
    document = {
        "name": name,
        "identity_key": identity.public_key.text,
        "node_key": public_text(node_key),
        "nominal_patients": nominal_patients,
    }
    return parse_settings(document, Enrolment, source="the site's enrolment")


def own_enrolment(courier: Path, *, name: str, key: VerifyKey) -> Enrolment:
    """The enrolment in the courier's directory, if it is this site's; needs no passphrase.

    Raises:
        ConfigurationError: If it cannot be read.
        TrustError: If this site did not sign it, or it names another node key than the courier's.
    """
    path = courier / ENROLMENT_FILE
    if not os.access(path, os.R_OK):
        raise ConfigurationError(f"{path}: no enrolment can be read", hint=f"run this {_ELSEWHERE}")
    found = read_enrolment(path)
    if (found.name, found.identity_key) != (name, key.text):
        raise TrustError(f"{path}: it is the enrolment of {found.name} under another key", hint="name --courier DIR")
    public = public_path(courier / read_courier_settings(courier).node_key)
    if public.exists() and read_public_key(public) != found.node_key:
        raise TrustError(
            f"{path}: it names another node key than {public.name}",
            hint="put back the file that was made with the key, or make both anew: fedward site node-key --replace",
        )
    return found


def renew_node_key(
    home: SiteHome, courier: Path, *, nominal_patients: int | None = None, replace: bool = False
) -> Enrolment:
    """Make another node key and an enrolment that names it; who the site is and what is pinned stay as they are.

    The gateway takes the new key only once the coordinator has enrolled it. Run by root, the files go to the owner of
    the directory.

    Args:
        nominal_patients: None: as the enrolment before says.
        replace: Let a node key that is there be lost.

    Raises:
        OutputExists: If there is a node key and `replace` is not set.
        ConfigurationError: If the directory cannot be written, or nothing says how many nominal patients.
        TrustError: If the directory belongs to another user, or the enrolment before is another site's.
    """
    try:
        with as_owner(courier):
            path = courier / read_courier_settings(courier).node_key
            if path.parent != courier:
                raise ConfigurationError(
                    f"courier.toml: node_key = {str(path)[:80]!r} lies elsewhere", hint="put it into that directory"
                )
            if path.exists() and not replace:
                raise OutputExists(
                    f"{path}: there is a node key already",
                    hint="if it is lost to somebody else or will not open, give --replace",
                )
            node_key, patients = make_node_key(), _nominal(courier, home, nominal_patients)
            enrolment = new_enrolment(home.identity, home.name, node_key, patients)
            write_node_key(path, node_key, name=home.name)
            write_enrolment(courier / ENROLMENT_FILE, enrolment, home.identity)
    except OSError as error:
        raise ConfigurationError(f"{courier}: cannot be written: {error.strerror or error}", hint=_ELSEWHERE) from error
    return enrolment


def _nominal(courier: Path, home: SiteHome, given: int | None) -> int:
    """The public number that a new enrolment says."""
    if given is not None:
        return given
    path = courier / ENROLMENT_FILE
    if not path.exists():
        raise ConfigurationError(
            f"{path}: gone, so nothing says how many nominal patients", hint="say it with --nominal-patients N"
        )
    before = read_enrolment(path)
    if before.identity_key != home.identity.public_key.text:
        raise TrustError(f"{path}: it is the enrolment of {before.name} under another key", hint="name --courier DIR")
    return before.nominal_patients
