package config_test

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"github.com/testudo-ipsec/testudo/services/internal/config"
)

type inner struct {
	MaxStale time.Duration `koanf:"max-stale" help:"a duration"`
	Deep     deep          `koanf:"deep"`
}

type deep struct {
	Word string `koanf:"word" help:"a word"`
}

type options struct {
	Word   string        `koanf:"word" help:"a word"`
	Yes    bool          `koanf:"yes" help:"a bool"`
	Number int           `koanf:"number" help:"a number"`
	Wait   time.Duration `koanf:"wait" help:"a duration"`
	List   []string      `koanf:"list" help:"a list"`
	Inner  inner         `koanf:"inner"`
}

func defaults() *options {
	return &options{Word: "default", Number: 1, Wait: time.Second, List: []string{"a", "b", "c"}, Inner: inner{MaxStale: time.Hour, Deep: deep{Word: "default"}}}
}

// load reads a configuration from a file's text (when not empty), variables
// and arguments.
func load(t *testing.T, file string, env map[string]string, args ...string) (*options, error) {
	t.Helper()
	for k, v := range env {
		t.Setenv(k, v)
	}
	if file != "" {
		path := filepath.Join(t.TempDir(), "file.yaml")
		if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, "--config", path)
	}
	o := defaults()
	fs := pflag.NewFlagSet("x", pflag.ContinueOnError)
	config.Bind(fs, o)
	if err := fs.Parse(args); err != nil {
		return o, err
	}
	return o, config.Load("testd", fs, o)
}

func TestEachSourceBeatsTheOneBefore(t *testing.T) {
	const file = "word: file\nnumber: 2\nwait: 2s\nlist: [f]\nyes: true\ninner: {max-stale: 2h, deep: {word: file}}\n"
	env := map[string]string{
		"TESTUDO_TESTD_WORD": "env", "TESTUDO_TESTD_NUMBER": "3", "TESTUDO_TESTD_WAIT": "3s", "TESTUDO_TESTD_LIST": "e,f", "TESTUDO_TESTD_YES": "false",
		"TESTUDO_TESTD_INNER_MAX_STALE": "3h", "TESTUDO_TESTD_INNER_DEEP_WORD": "env",
	}
	args := []string{"--word=flag", "--number=4", "--wait=4s", "--list=g,h", "--list=i", "--yes", "--inner.max-stale=4h", "--inner.deep.word=flag"}
	for _, tt := range []struct {
		name string
		file string
		env  map[string]string
		args []string
		want *options
	}{
		{"defaults", "", nil, nil, defaults()},
		{"file", file, nil, nil, &options{"file", true, 2, 2 * time.Second, []string{"f"}, inner{2 * time.Hour, deep{"file"}}}},
		{"environment", "", env, nil, &options{"env", false, 3, 3 * time.Second, []string{"e", "f"}, inner{3 * time.Hour, deep{"env"}}}},
		{"flags", "", nil, args, &options{"flag", true, 4, 4 * time.Second, []string{"g", "h", "i"}, inner{4 * time.Hour, deep{"flag"}}}},
		{"file and environment", file, env, nil, &options{"env", false, 3, 3 * time.Second, []string{"e", "f"}, inner{3 * time.Hour, deep{"env"}}}},
		{"all", file, env, args, &options{"flag", true, 4, 4 * time.Second, []string{"g", "h", "i"}, inner{4 * time.Hour, deep{"flag"}}}},
		{
			"a part from each", "word: file\ninner: {deep: {word: file}}\n", map[string]string{"TESTUDO_TESTD_NUMBER": "3"}, []string{"--wait=4s"},
			&options{"file", false, 3, 4 * time.Second, []string{"a", "b", "c"}, inner{time.Hour, deep{"file"}}},
		},
		{"flags set to the default", file, nil, []string{"--word=default", "--yes=false", "--list=a,b,c"}, &options{"default", false, 2, 2 * time.Second, []string{"a", "b", "c"}, inner{2 * time.Hour, deep{"file"}}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := load(t, tt.file, tt.env, tt.args...)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got  %+v\nwant %+v", got, tt.want)
			}
		})
	}
}

func TestAListCanBeEmptied(t *testing.T) {
	for _, tt := range []struct {
		name, file string
		env        map[string]string
		args       []string
	}{
		{"file", "list: []\n", nil, nil},
		{"environment", "", map[string]string{"TESTUDO_TESTD_LIST": ""}, nil},
		{"flag", "", nil, []string{"--list="}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := load(t, tt.file, tt.env, tt.args...)
			if err != nil || len(got.List) != 0 {
				t.Errorf("got %q, %v, want none", got.List, err)
			}
		})
	}
}

func TestMistakesAreNamed(t *testing.T) {
	for _, tt := range []struct {
		name, file string
		env        map[string]string
		args       []string
		want       []string
	}{
		{"unknown key", "wrod: x\n", nil, nil, []string{"file.yaml", "wrod", "known keys:", "inner.deep.word"}},
		{"unknown nested key", "inner: {deep: {wrod: x}}\n", nil, nil, []string{"inner.deep", "wrod"}},
		{"two unknown keys", "wrod: x\nlits: y\n", nil, nil, []string{"wrod", "lits"}},
		{"wrong case", "Word: x\n", nil, nil, []string{"Word"}},
		{"unknown variable", "", map[string]string{"TESTUDO_TESTD_WROD": "x", "TESTUDO_TESTD_INNER": "y"}, nil, []string{"TESTUDO_TESTD_WROD", "TESTUDO_TESTD_INNER "}},
		{"unknown flag", "", nil, []string{"--wrod=x"}, []string{"wrod"}},
		{"file that is not there", "", nil, []string{"--config=/nowhere.yaml"}, []string{"/nowhere.yaml"}},
		{"file that is not YAML", "word: [\n", nil, nil, []string{"file.yaml"}},
		{"word for a number", "number: many\n", nil, nil, []string{"'number'", "int"}},
		{"word for a bool", "", map[string]string{"TESTUDO_TESTD_YES": "maybe"}, nil, []string{"'yes'", "bool"}},
		{"number for a duration", "wait: 30\n", nil, nil, []string{"wait", "30", "unit"}},
		{"number for a duration in a variable", "", map[string]string{"TESTUDO_TESTD_INNER_MAX_STALE": "24"}, nil, []string{"inner.max-stale", "24", "unit"}},
		{"number for a duration in a flag", "", nil, []string{"--wait=30"}, []string{"wait", "30"}},
		{"a section that is a word", "inner: x\n", nil, nil, []string{"inner"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := load(t, tt.file, tt.env, tt.args...)
			if err == nil {
				t.Fatalf("taken, as %+v", got)
			}
			for _, w := range tt.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("error %q does not say %q", err, w)
				}
			}
		})
	}
}

func TestVariablesOfOtherDaemonsAreTheirs(t *testing.T) {
	if _, err := load(t, "", map[string]string{"TESTUDO_OTHERD_WROD": "x", "TESTUDO_TESTD": "y", "TESTUDO_CA": "z"}); err != nil {
		t.Error(err)
	}
}

func TestAddresses(t *testing.T) {
	for a, ok := range map[string]bool{
		"unix:///run/x.sock": true, "127.0.0.1:7401": true, "[::1]:7401": true, "host.example:7401": true, ":7401": true,
		"unix://run/x": false, "unix://": false, "host": false, "": false, "::1:7401": false, "tcp://host:1": false, "host:": false, "host:http": false, "host:65536": false, "host:-1": false,
	} {
		if err := config.ValidateAddress("key", a); (err == nil) != ok || err != nil && !strings.HasPrefix(err.Error(), "key: got ") {
			t.Errorf("%q: got %v", a, err)
		}
	}
	if err := config.ValidateTCP("metrics", "unix:///run/x"); err == nil {
		t.Error("metrics on a unix socket was taken, which nobody can serve")
	}
}

func TestTLSNamesEveryFileThatIsMissing(t *testing.T) {
	if err := (config.TLS{}).Validate("unix:///a", ""); err != nil {
		t.Errorf("unix sockets need no certificates: %v", err)
	}
	err := config.TLS{Cert: "/nowhere"}.Validate("unix:///a", "host:1")
	if err == nil {
		t.Fatal("taken")
	}
	for _, w := range []string{"tls.ca: not set", "host:1", "tls.cert: stat /nowhere", "tls.key: not set"} {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error %q does not say %q", err, w)
		}
	}
}
