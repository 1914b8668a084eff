"""The answer that every client asks for, and the tool that the model calls."""

from pydantic import BaseModel
from scenario import WEATHER


class City(BaseModel):
    city: str
    population: int


def get_weather(city: str) -> str:
    """Tells the weather."""
    return WEATHER
