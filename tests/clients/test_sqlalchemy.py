"""SQLAlchemy 2 unchanged: create_all, ORM session with relationships, reflection, drop_all."""

from __future__ import annotations

import enum

import pytest
import sqlalchemy as sa
from sqlalchemy import orm


class Base(orm.DeclarativeBase):
    pass


class State(enum.Enum):
    open = "open"
    paid = "paid"


class Customer(Base):
    __tablename__ = "customer"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    email: orm.Mapped[str] = orm.mapped_column(sa.String(80), unique=True)
    orders: orm.Mapped[list[Order]] = orm.relationship(
        back_populates="customer", cascade="all, delete-orphan"
    )


class Order(Base):
    __tablename__ = "customer_order"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    customer_id: orm.Mapped[int] = orm.mapped_column(sa.ForeignKey("customer.id"), index=True)
    state: orm.Mapped[State] = orm.mapped_column(default=State.open)
    total: orm.Mapped[float] = orm.mapped_column(sa.Numeric(10, 2), default=0)
    customer: orm.Mapped[Customer] = orm.relationship(back_populates="orders")
    __table_args__ = (
        sa.CheckConstraint("total >= 0"),
        sa.Index("order_open", "customer_id", postgresql_where=sa.text("total > 0")),
    )


@pytest.fixture
def engine(cluster):
    made = sa.create_engine(cluster.dsn.replace("postgresql://", "postgresql+psycopg://", 1))
    Base.metadata.drop_all(made)
    yield made
    Base.metadata.drop_all(made)
    assert not set(sa.inspect(made).get_table_names()) & {"customer", "customer_order"}
    made.dispose()


def test_orm_life(engine) -> None:
    Base.metadata.create_all(engine)
    with orm.Session(engine) as session:
        session.add_all(
            Customer(email=f"c{n}@example.org", orders=[Order(total=n), Order()]) for n in range(20)
        )
        session.commit()
    with orm.Session(engine) as session:
        query = sa.select(Customer).options(orm.selectinload(Customer.orders)).order_by(Customer.id)
        customers = session.scalars(query).all()
        assert len(customers) == 20 and all(len(c.orders) == 2 for c in customers)
        customers[3].orders[0].state = State.paid
        session.delete(customers[4])
        session.commit()
    with orm.Session(engine) as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(Order)) == 38
        assert session.scalar(sa.select(sa.func.sum(Order.total))) == sum(range(20)) - 4
        paid = session.scalars(sa.select(Order).where(Order.state == State.paid)).all()
        assert len(paid) == 1
        session.add(Customer(email="c0@example.org"))
        with pytest.raises(sa.exc.IntegrityError):
            session.commit()


def test_reflection(engine) -> None:
    Base.metadata.create_all(engine)
    inspector = sa.inspect(engine)
    assert inspector.get_pk_constraint("customer")["constrained_columns"] == ["id"]
    keys = inspector.get_foreign_keys("customer_order")
    assert [key["referred_table"] for key in keys] == ["customer"]
    assert {i["name"] for i in inspector.get_indexes("customer_order")} >= {"order_open"}
    reflected = sa.Table("customer", sa.MetaData(), autoload_with=engine)
    assert list(reflected.columns.keys()) == ["id", "email"]
