"""Identities that nobody was given: signed by an authority all the same, as a thief of its key could."""

from datetime import timedelta

from fieldloop.domain.admission import Kind
from fieldloop.edge import identity
from fieldloop.stores.settings import Certificate, Settings
from infra.local.authority import read_authority, sign
from infra.local.keys import private_folder, write_private


def forge(settings: Settings, kind: Kind, name: str, generation: str = "0") -> Certificate:
    """Sign a certificate with an installation's authority behind its signer's back; return its paths."""
    key = identity.make_key()
    subject = identity.subject_of(kind, generation, name)
    certificate = sign(read_authority(settings), subject, key.public_key(), timedelta(hours=1))
    file = private_folder(settings.data_dir / "forged" / name) / "identity.pem"
    write_private(file, identity.pem_identity(key, certificate))
    return Certificate(file, file, settings.data_dir / "pki" / "ca.pem")
