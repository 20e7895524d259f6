"""Accounts and their sessions."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "accounts",
        sa.Column("name", sa.String(40), nullable=False),
        sa.Column("roles", sa.JSON, nullable=False),
        sa.Column("password", sa.String(200)),
        sa.Column("key", sa.String(64)),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_accounts"),
        sa.UniqueConstraint("key", name="uq_accounts_key"),
    )
    op.create_table(
        "logins",
        sa.Column("token", sa.String(64), nullable=False),
        sa.Column("account", sa.String(40), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("token", name="pk_logins"),
        sa.ForeignKeyConstraint(["account"], ["accounts.name"], name="fk_logins_account", ondelete="CASCADE"),
    )
    op.create_index("ix_logins_account", "logins", ["account"])
