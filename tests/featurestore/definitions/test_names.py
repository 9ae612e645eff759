"""Names that become folders stay in their folder, or are refused."""

import pytest

from steadfeast import Store
from steadfeast.featurestore.errors import RefusedDefinitionError
from support.small_repo import VIEW, SmallRepo


@pytest.mark.parametrize("name", ["../out", "a/b", ".hidden", "a\nb"])
def test_a_service_whose_name_leads_out_of_its_folder_is_refused_at_apply(tmp_path, name):
    repo = SmallRepo(tmp_path / "repo", VIEW.replace('"svc"', repr(name)))
    with Store.open(repo.config) as store:
        with pytest.raises(RefusedDefinitionError, match="names a folder"):
            store.apply()
        assert store.services() == []
