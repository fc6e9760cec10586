import contextlib
import copy
import io
import tempfile
import unittest
from pathlib import Path

import yaml
from check_config import findings, main

GOOD = {
    "model_list": [
        {
            "model_name": "small",
            "litellm_params": {
                "model": "openai/small",
                "api_base": "http://127.0.0.1:8080/v1",
                "api_key": "none",
                "timeout": 30,
            },
            "model_info": {"id": "small-local"},
        }
    ],
    "router_settings": {"num_retries": 0, "model_group_alias": {"tasks": "small"}},
    "general_settings": {
        "master_key": "os.environ/LITELLM_MASTER_KEY",
        "custom_auth": "my_auth.check",
    },
}


def spoilt(*path, value):
    config = copy.deepcopy(GOOD)
    place = config
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return config


PARAMS = ("model_list", 0, "litellm_params")


class Config(unittest.TestCase):
    def test_a_good_file_has_no_findings(self):
        self.assertEqual(findings(GOOD), [])

    def test_each_fault_is_found(self):
        cases = [
            (spoilt(*PARAMS, "model", value="small"), "prefix"),
            (spoilt(*PARAMS, "model", value="ollama/small"), "ollama_chat/"),
            (spoilt(*PARAMS, "api_base", value="http://127.0.0.1:8080"), "/v1"),
            (spoilt(*PARAMS, "api_key", value=None), "insists on one"),
            (spoilt(*PARAMS, "api_key", value="sk-abcdefghijkl"), "stands in the file"),
            (spoilt(*PARAMS, "timeout", value=None), "ten minutes"),
            (spoilt("model_list", 0, "model_info", value=None), "x-litellm-model-id"),
            (spoilt("model_list", value=[]), "no model"),
            (spoilt("model_list", value=GOOD["model_list"] * 2), "used twice"),
            (spoilt("router_settings", value={}), "num_retries"),
            (spoilt("router_settings", "model_group_alias", value={"a": "b"}), "leads to b"),
            (spoilt("router_settings", "fallbacks", value=[{"small": ["big"]}]), "names big"),
            (spoilt("general_settings", "master_key", value=None), "no lock"),
            (spoilt("general_settings", "master_key", value="sk-mine"), "os.environ/"),
            (spoilt("general_settings", "custom_auth", value=None), "a wrong one a 400"),
        ]
        for config, said in cases:
            found = findings(config)
            self.assertTrue(any(said in text for text in found), (said, found))

    def test_command_line(self):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "config.yaml"
            for text, status in ((yaml.safe_dump(GOOD), 0), ("model_list: [", 1), ("{}", 1)):
                file.write_text(text, encoding="utf-8")
                with contextlib.redirect_stdout(io.StringIO()):
                    self.assertEqual(main([str(file)]), status, text)


if __name__ == "__main__":
    unittest.main()
