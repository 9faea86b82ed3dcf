"""Every error that Fieldloop raises on purpose.

FieldloopError
├── DocumentError      a profile, recipe or source's declaration that cannot be used; names file and line
├── PayloadError       a message that does not have its profile's format
├── ValidationError    a data set that failed its suite
├── TrainingError      data or a candidate from which no model can be made
├── ParityError        graph and native model differ by more than the recipe allows
├── ReleaseError       a release that cannot be built, verified or proved
│   └── OvertakenError a rollout that somebody else has ended
├── SourceError        a file, table or service that is not what a source's declaration says
├── EnrolmentError     a token, certificate, label or request to join that is refused
├── StoreError         a table, object, version or stream that is missing or refuses
└── ServiceError       a service that does not start, answer or stop
"""


class FieldloopError(Exception):
    """The root of the tree: what a person can mend, said in one message."""


class DocumentError(FieldloopError):
    """A profile or recipe that cannot be used; the message names file and line."""


class PayloadError(FieldloopError):
    """A message that does not have the format its device profile declares."""


class ValidationError(FieldloopError):
    """A data set that failed its suite; the line stops here."""


class TrainingError(FieldloopError):
    """Data or a candidate from which no model can be made."""


class ParityError(FieldloopError):
    """Graph and native model differ by more than the recipe allows."""


class ReleaseError(FieldloopError):
    """A release that cannot be built, verified or proved."""


class OvertakenError(ReleaseError):
    """A rollout that somebody else has ended: it was cancelled, or a newer one has its targets."""


class SourceError(FieldloopError):
    """A file, table or service that is not what its source's declaration says; the message says where."""


class EnrolmentError(FieldloopError):
    """A token, a certificate, a label or a request to join that cannot be used; the message says what to do."""


class StoreError(FieldloopError):
    """A table, object, model version or stream that is missing, or refuses."""


class ServiceError(FieldloopError):
    """A service that does not start, answer or stop."""
