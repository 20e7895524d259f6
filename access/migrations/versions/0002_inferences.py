"""Inferences, the labels entered for them, and dead letters."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "inferences",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("account", sa.String(64), nullable=False),
        sa.Column("state", sa.String(12), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("bytes", sa.Integer, nullable=False),
        sa.Column("audio", sa.String(64), nullable=False),
        sa.Column("language", sa.String(2), nullable=False),
        sa.Column("subject", sa.String(64)),
        sa.Column("facts", sa.JSON, nullable=False),
        sa.Column("round", sa.Integer, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("published_at", _TIME),
        sa.Column("completed_at", _TIME),
        sa.Column("answer", sa.JSON(none_as_null=True)),
        sa.Column("error", sa.String(64)),
        sa.Column("detail", sa.Text),
        sa.Column("version", sa.String(64)),
        sa.Column("diagnosis", sa.String(16)),
        sa.Column("label", sa.String(8)),
        sa.Column("labelled_at", _TIME),
        sa.Column("labelled_by", sa.String(64)),
        sa.Column("audio_deleted_at", _TIME),
        sa.PrimaryKeyConstraint("id", name="pk_inferences"),
    )
    op.create_index("ix_inferences_account_created_at", "inferences", ["account", "created_at"])
    op.create_index("ix_inferences_state_published_at", "inferences", ["state", "published_at"])
    op.create_index("ix_inferences_subject", "inferences", ["subject"])
    op.create_index("ix_inferences_version", "inferences", ["version"])
    op.create_table(
        "labels",
        sa.Column("number", sa.Integer, nullable=False),
        _inference(),
        sa.Column("label", sa.String(8), nullable=False),
        sa.Column("why", sa.Text, nullable=False),
        sa.Column("who", sa.String(64), nullable=False),
        sa.Column("at", _TIME, nullable=False),
        sa.Column("published_at", _TIME),
        sa.PrimaryKeyConstraint("number", name="pk_labels"),
        _of("labels"),
    )
    op.create_index("ix_labels_inference_id", "labels", ["inference_id"])
    op.create_table(
        "dead_letters",
        sa.Column("number", sa.Integer, nullable=False),
        _inference(),
        sa.Column("round", sa.Integer, nullable=False),
        sa.Column("tries", sa.Integer, nullable=False),
        sa.Column("error", sa.String(64), nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sa.Column("at", _TIME, nullable=False),
        sa.Column("retried_at", _TIME),
        sa.Column("retried_by", sa.String(64)),
        sa.PrimaryKeyConstraint("number", name="pk_dead_letters"),
        _of("dead_letters"),
    )
    op.create_index("ix_dead_letters_inference_id", "dead_letters", ["inference_id"])


def _inference() -> sa.Column[str]:
    return sa.Column("inference_id", sa.String(32), nullable=False)


def _of(table: str) -> sa.ForeignKeyConstraint:
    name = f"fk_{table}_inference_id"
    return sa.ForeignKeyConstraint(["inference_id"], ["inferences.id"], name=name, ondelete="CASCADE")
