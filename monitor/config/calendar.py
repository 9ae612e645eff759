"""Which days of the calendar are unlike others, as a monitor is told.

Below `schema`, whose monitors have one; `steadfeast.monitor.drift.calendar` compares by it.
"""

from __future__ import annotations

from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Self

import holidays
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from steadfeast.featurestore.config import Duration, Section
from steadfeast.monitor.config.sources import StretchConfig

if TYPE_CHECKING:
    from datetime import date


class CalendarConfig(Section):
    """Days that are compared with their like.

    Attributes:
        country: ISO 3166 code, as `US`, whose public holidays are days of their own kind.
        subdivision: Of the country, as `CA`.
        days: More kinds of days by name, each as its periods: `{sales: [{from: 2024-11-25, to:
            2024-12-03}]}`.
        month_start: So many first days of each month are of their own kind; none to find out from
            the reference whether the first three are, 0 for never.
        season: Length of a second season beside the week, such as `14d`.
    """

    country: str = ""
    subdivision: str = ""
    days: dict[str, tuple[StretchConfig, ...]] = Field(default_factory=dict)
    month_start: NonNegativeInt | None = None
    season: Duration | None = None

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.subdivision and not self.country:
            raise ValueError("subdivision needs a country")
        if self.country:
            try:
                public_holidays(self.country, self.subdivision, 2024)
            except NotImplementedError as error:
                raise ValueError(f"{error}; see https://holidays.readthedocs.io") from error
        if self.season is not None and self.season <= timedelta(0):
            raise ValueError("season must be longer than nothing")
        return self


@lru_cache(maxsize=256)
def public_holidays(country: str, subdivision: str, year: PositiveInt) -> dict[date, str]:
    """Return the public holidays of a year by their names.

    Raises:
        NotImplementedError: The country or its subdivision is not known.
    """
    return dict(holidays.country_holidays(country, subdiv=subdivision or None, years=year))
