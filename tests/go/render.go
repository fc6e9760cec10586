// Renders a Modelfile's TEMPLATE as Ollama does: Go's text/template over values of the same
// names and types (Ollama's template/template.go: properties and arguments are maps, so they
// come in alphabetical order, and arguments print as compact JSON).
// Usage: render TEMPLATE-FILE < conversations.jsonl > prompts.jsonl
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"os"
	"text/template"
)

type types []string

func (t *types) UnmarshalJSON(data []byte) error {
	var one string
	if json.Unmarshal(data, &one) == nil {
		*t = types{one}
		return nil
	}
	var many []string
	err := json.Unmarshal(data, &many)
	*t = many
	return err
}

type arguments map[string]any

func (a arguments) String() string {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.Encode(map[string]any(a))
	return string(bytes.TrimSpace(b.Bytes()))
}

type property struct {
	AnyOf []property
	Type  types
	Enum  []any
}

type conversation struct {
	Tools []struct {
		Function struct {
			Name       string
			Parameters struct {
				Required   []string
				Properties map[string]property
			}
		}
	}
	Messages []struct {
		Role, Content string
		ToolCalls     []struct {
			Function struct {
				Name      string
				Arguments arguments
			}
		} `json:"tool_calls"`
	}
}

func main() {
	text, err := os.ReadFile(os.Args[1])
	if err != nil {
		panic(err)
	}
	t := template.Must(template.New("").Option("missingkey=zero").Parse(string(text)))
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(nil, 1<<24)
	out := json.NewEncoder(os.Stdout)
	for in.Scan() {
		var c conversation
		if err := json.Unmarshal(in.Bytes(), &c); err != nil {
			panic(err)
		}
		var b bytes.Buffer
		if err := t.Execute(&b, c); err != nil {
			panic(err)
		}
		out.Encode(b.String())
	}
}
