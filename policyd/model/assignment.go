package model

import "strings"

// Assignment gives a policy to nodes. For one node the nearest wins: its name
// before labels before its unit, and a deeper unit before one above it. Two
// that are equally near and name different policies are a mistake.
type Assignment struct {
	Meta
	Policy string
	Node   string            // one of Node,
	Labels map[string]string // Labels
	Unit   string            // and Unit is set
}

// To reads as the operator wrote it.
func (a *Assignment) To() string {
	switch {
	case a.Node != "":
		return a.Node
	case a.Labels != nil:
		return LabelsString(a.Labels)
	}
	return a.Unit
}

// Nearness is 0 for a node the assignment does not cover; else more is nearer.
func (a *Assignment) Nearness(n *Node) int {
	switch {
	case a.Node != "" && a.Node == n.Name:
		return 1 << 20
	case a.Labels != nil && n.HasLabels(a.Labels):
		return 1 << 19
	case a.Unit != "" && n.InUnit(a.Unit):
		return strings.Count(a.Unit, "/")
	}
	return 0
}

func readAssignment(v value, m Meta) *Assignment {
	a := &Assignment{Meta: m}
	v.mapping(
		key{"policy", true, func(v value) { a.Policy = v.text("the name of a Policy") }},
		key{"to", true, func(v value) {
			const forms = "a node's name, a unit such as /corp/eu/web, or {labels: {...}}"
			switch {
			case v.isString() && strings.HasPrefix(v.node.Value, "/"):
				a.Unit = readUnit(v)
			case v.isString():
				a.Node = v.node.Value
			case len(v.node.Content) > 0:
				v.mapping(key{"labels", true, func(v value) { a.Labels = readLabels(v) }})
			default:
				v.want(forms)
			}
		}},
	)
	return a
}
