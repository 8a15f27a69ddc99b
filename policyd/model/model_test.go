package model_test

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/testudo-ipsec/testudo/policyd/model"
)

var update = flag.Bool("update", false, "write the golden files")

const examples = "../../deploy/examples"

// Every testdata/bad/*.yaml is refused with exactly the messages of its golden
// file.
func TestBadInput(t *testing.T) {
	files, err := filepath.Glob("testdata/bad/*.yaml")
	if err != nil || len(files) < 5 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, f := range files {
		t.Run(filepath.Base(f), func(t *testing.T) {
			_, _, err := model.Read(f)
			var errs model.Errors
			if !errors.As(err, &errs) {
				t.Fatalf("got %v, want model.Errors", err)
			}
			for _, e := range errs {
				if e.Pos.Line == 0 || e.Text == "" {
					t.Errorf("%q does not say where or what", e)
				}
			}
			got, golden := err.Error()+"\n", strings.TrimSuffix(f, ".yaml")+".golden"
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("got:\n%s\nwant:\n%s", got, want)
			}
		})
	}
}

// Each line of a bad file that ends in "# bad" is one that some message points
// to, and no message points elsewhere.
func TestEveryMistakeIsReportedAtItsLine(t *testing.T) {
	files, err := filepath.Glob("testdata/bad/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		var want, got []int
		for i, line := range strings.Split(string(data), "\n") {
			if strings.HasSuffix(line, "# bad") {
				want = append(want, i+1)
			}
		}
		_, _, err = model.Read(f)
		var errs model.Errors
		if !errors.As(err, &errs) {
			t.Fatalf("%s: got %v", f, err)
		}
		for _, e := range errs {
			got = append(got, e.Pos.Line)
		}
		slices.Sort(got)
		if got = slices.Compact(got); !slices.Equal(got, want) {
			t.Errorf("%s: messages for lines %v, want %v", f, got, want)
		}
	}
}

// A secret that somebody writes into a policy is not repeated in the message.
func TestASecretIsNotQuoted(t *testing.T) {
	const secret = "correct horse battery staple"
	_, err := model.Parse("x", []byte("apiVersion: testudo/v1\nkind: Authentication\nmetadata: {name: a}\nspec: {methods: [{psk: {secret: "+secret+"}}]}\n"))
	if err == nil || strings.Contains(err.Error(), "horse") {
		t.Fatalf("got %v, want an error without the secret", err)
	}
}

// The text of each document, alone, reads as the same document.
func TestDocumentTextStandsAlone(t *testing.T) {
	files, err := filepath.Glob(examples + "/*.yaml")
	if err != nil || len(files) < 4 {
		t.Fatalf("%d examples, %v", len(files), err)
	}
	for _, f := range files {
		_, docs, err := model.Read(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range docs {
			again, err := model.Parse(f, d.Text)
			if err != nil || len(again) != 1 {
				t.Fatalf("%s %s %s: %d documents, %v", f, d.Kind, d.Name, len(again), err)
			}
			if again[0].Kind != d.Kind || again[0].Name != d.Name || string(again[0].Text) != string(d.Text) {
				t.Errorf("%s: got %+v, want %+v", f, again[0], d)
			}
			a, b := reflect.ValueOf(again[0].Spec).Elem(), reflect.ValueOf(d.Spec).Elem()
			clearPos(a)
			clearPos(b)
			if !reflect.DeepEqual(a.Interface(), b.Interface()) {
				t.Errorf("%s %s %s: got\n%+v, want\n%+v", f, d.Kind, d.Name, a.Interface(), b.Interface())
			}
		}
	}
}

// clearPos zeroes every Pos in a value: the lines differ.
func clearPos(v reflect.Value) {
	switch {
	case v.Type() == reflect.TypeFor[model.Pos]():
		v.SetZero()
	case v.Kind() == reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				clearPos(v.Field(i))
			}
		}
	case v.Kind() == reflect.Slice:
		for i := range v.Len() {
			clearPos(v.Index(i))
		}
	}
}

// Nearness: the node's name, then labels, then the deepest unit.
func TestTheNearestAssignmentWins(t *testing.T) {
	const head = `apiVersion: testudo/v1
kind: Node
metadata: {name: n, labels: {tier: web}}
spec: {unit: /corp/eu/web, addresses: [10.0.0.1]}
`
	far := []string{"/corp", "/corp/eu", "/corp/eu/web", "{labels: {tier: web}}", "n"}
	text := head
	for i, to := range far {
		name := string(rune('a' + i))
		text += "---\nkind: Policy\nmetadata: {name: " + name + "}\nspec: {rules: []}\n---\nkind: Assignment\nmetadata: {name: " + name + "}\nspec: {policy: " + name + ", to: " + to + "}\n"
		docs, err := model.Parse("x", []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		slices.Reverse(docs) // order has no meaning
		set, err := model.Load(docs)
		if err != nil {
			t.Fatal(err)
		}
		if p := set.PolicyOf(set.Nodes["n"]); p == nil || p.Name != name {
			t.Errorf("with assignments to %v: got policy %v, want that of %s", far[:i+1], p, to)
		}
	}
	docs, err := model.Parse("x", []byte(strings.Replace(text, "/corp/eu/web, addresses", "/corp/europe, addresses", 1)))
	if err != nil {
		t.Fatal(err)
	}
	set, err := model.Load(docs)
	if err != nil {
		t.Fatal(err)
	}
	if set.Nodes["n"].InUnit("/corp/eu") || !set.Nodes["n"].InUnit("/corp") {
		t.Error("/corp/europe is in /corp and not in /corp/eu")
	}
}

// Whatever the input, reading ends with documents or with errors that say where.
func FuzzParse(f *testing.F) {
	for _, pattern := range []string{examples + "/*.yaml", "testdata/bad/*.yaml"} {
		files, err := filepath.Glob(pattern)
		if err != nil || len(files) == 0 {
			f.Fatalf("%s: %v", pattern, err)
		}
		for _, name := range files {
			data, err := os.ReadFile(name)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(data)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		docs, err := model.Parse("f", data)
		var errs model.Errors
		if err != nil && (!errors.As(err, &errs) || len(errs) == 0) {
			t.Fatalf("got %T %v, want model.Errors", err, err)
		}
		lines := 1 // YAML ends a line at any of these
		for _, end := range []string{"\n", "\r", "\u0085", "\u2028", "\u2029"} {
			lines += strings.Count(string(data), end)
		}
		for _, e := range errs {
			if e.Pos.Line < 0 || e.Pos.Line > lines+1 {
				t.Errorf("line %d of %d: %v", e.Pos.Line, lines, e)
			}
		}
		set, loadErr := model.Load(docs)
		if err == nil && loadErr == nil && set == nil {
			t.Fatal("no set and no error")
		}
		if err != nil || len(docs) > 50 {
			return
		}
		for _, d := range docs { // what is accepted is accepted again, alone
			if _, err := model.Parse("again", d.Text); err != nil {
				t.Errorf("%s %s alone: %v\n%s", d.Kind, d.Name, err, d.Text)
			}
		}
	})
}
