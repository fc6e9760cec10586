// Renders a Modelfile's TEMPLATE as Ollama does: Go's text/template over values of the same
// names and types (Ollama's template/template.go: properties and arguments are maps, so they
// come in alphabetical order, and "json" escapes &, < and >).
// The first line is the mark by which Ollama would know a call in what the model writes.
// Usage: render TEMPLATE-FILE < conversations.jsonl > prompts.jsonl
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"text/template"
	"text/template/parse"
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

func asJSON(value any) string {
	text, _ := json.Marshal(value)
	return string(text)
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
				Arguments map[string]any
			}
		} `json:"tool_calls"`
	}
}

// aboutCalls finds the first condition that asks for .ToolCalls (Ollama's tools/template.go).
func aboutCalls(nodes []parse.Node) *parse.IfNode {
	for _, node := range nodes {
		switch n := node.(type) {
		case *parse.IfNode:
			for _, command := range n.Pipe.Cmds {
				for _, arg := range command.Args {
					if field, ok := arg.(*parse.FieldNode); ok && strings.Contains(field.String(), "ToolCalls") {
						return n
					}
				}
			}
			if found := aboutCalls(n.List.Nodes); found != nil {
				return found
			}
			if n.ElseList != nil {
				if found := aboutCalls(n.ElseList.Nodes); found != nil {
					return found
				}
			}
		case *parse.RangeNode:
			if found := aboutCalls(n.List.Nodes); found != nil {
				return found
			}
		}
	}
	return nil
}

// mark is the text that such a condition begins with; without one, Ollama takes an answer for a
// call only where it begins with "{".
func mark(nodes []parse.Node) string {
	if found := aboutCalls(nodes); found != nil && len(found.List.Nodes) > 0 {
		if text, ok := found.List.Nodes[0].(*parse.TextNode); ok {
			before, _, _ := strings.Cut(string(text.Text), "{")
			return strings.TrimSpace(before)
		}
	}
	return "{"
}

func main() {
	text, err := os.ReadFile(os.Args[1])
	if err != nil {
		panic(err)
	}
	t := template.New("").Option("missingkey=zero").Funcs(template.FuncMap{"json": asJSON})
	template.Must(t.Parse(string(text)))
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(nil, 1<<24)
	out := json.NewEncoder(os.Stdout)
	out.Encode(mark(t.Tree.Root.Nodes))
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
