package deploy

import (
	"strings"
	"testing"

	"github.com/testudo-ipsec/testudo/policyd/compile"
	"github.com/testudo-ipsec/testudo/policyd/model"
)

// block is one fenced block of a Markdown file.
type block struct {
	line int    // of its first line of text
	info string // what follows the opening fence
	text string
}

func blocks(t *testing.T, path string) []block {
	t.Helper()
	var out []block
	var open *block
	for i, line := range strings.Split(read(t, path), "\n") {
		fence, ok := strings.CutPrefix(line, "```")
		switch {
		case ok && open == nil:
			open = &block{line: i + 2, info: fence}
		case ok:
			out = append(out, *open)
			open = nil
		case open != nil:
			open.text += line + "\n"
		}
	}
	if open != nil {
		t.Fatalf("%s:%d: the fenced block is not closed", path, open.line)
	}
	return out
}

// A block marked "yaml" is a set that compiles; one marked "yaml refused" is one
// that does not, and the text block after it is a part of what is said.
func TestPolicyReference(t *testing.T) {
	const path = root + "/docs/policy.md"
	accepted, refused := 0, 0
	all := blocks(t, path)
	for i, b := range all {
		if b.info != "yaml" && b.info != "yaml refused" {
			continue
		}
		docs, err := model.Parse("policy.md", []byte(b.text))
		set, lerr := model.Load(docs)
		if err = model.Join(err, lerr); err == nil {
			_, err = compile.All(set)
		}
		if b.info == "yaml" {
			accepted++
			if err != nil {
				t.Errorf("%s:%d: this example does not compile:\n%v", path, b.line, err)
			}
			continue
		}
		refused++
		if i+1 == len(all) || all[i+1].info != "text" {
			t.Errorf("%s:%d: no text block says how this is refused", path, b.line)
			continue
		}
		if want := strings.TrimSpace(all[i+1].text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s:%d: got\n%v\nwant in it\n%s", path, b.line, err, want)
		}
	}
	if accepted < 1 || refused < 3 {
		t.Errorf("%s: %d accepted and %d refused examples were found; are the fences as this test reads them?", path, accepted, refused)
	}
}

// The weights that the reference prints are those that the compiler gives.
func TestPolicyReferenceWeights(t *testing.T) {
	const path = root + "/docs/policy.md"
	var example, want string
	for _, b := range blocks(t, path) {
		switch b.info {
		case "yaml":
			if example == "" { // the first is the whole one
				example = b.text
			}
		case "text effective web-1":
			want = b.text
		}
		if want != "" {
			break
		}
	}
	docs, err := model.Parse("policy.md", []byte(example))
	if err != nil {
		t.Fatal(err)
	}
	set, err := model.Load(docs)
	if err != nil {
		t.Fatal(err)
	}
	got, err := compile.New(set).Node("web-1")
	if err != nil {
		t.Fatal(err)
	}
	if text := compile.Text(got.Policy); text != want {
		t.Errorf("%s: the compiler says\n%s\nthe text says\n%s", path, text, want)
	}
}
