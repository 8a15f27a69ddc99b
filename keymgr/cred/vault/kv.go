package vault

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/vault/api"
	"github.com/testudo-ipsec/testudo/keymgr/cred"
)

// maxAnswer bounds an answer: Vault stores at most 1 MiB under one path.
const maxAnswer = 2 << 20

// kvData is the answer of MOUNT/data/PATH; Data is nil when this version was
// deleted or destroyed.
type kvData struct {
	Data struct {
		Data     map[string]json.RawMessage `json:"data"`
		Metadata struct {
			Version     int       `json:"version"`
			CreatedTime time.Time `json:"created_time"`
		} `json:"metadata"`
	} `json:"data"`
}

// kvMetadata is the answer of MOUNT/metadata/PATH.
type kvMetadata struct {
	Data struct {
		CurrentVersion int                  `json:"current_version"`
		Versions       map[string]kvVersion `json:"versions"`
	} `json:"data"`
}

type kvVersion struct {
	CreatedTime  time.Time `json:"created_time"`
	DeletionTime string    `json:"deletion_time"`
	Destroyed    bool      `json:"destroyed"`
}

// location is a reference as KV version 2 sees it.
type location struct{ ref, mount, path, field string }

func locate(ref string) (location, error) {
	r, err := cred.ParseRef(ref)
	if err != nil {
		return location{}, err
	}
	if r.Scheme != cred.SchemeVault {
		return location{}, cred.Errorf(cred.Invalid, ref, "this store serves vault: references only")
	}
	mount, path, ok := strings.Cut(r.Path, "/")
	if !ok {
		return location{}, cred.Errorf(cred.Invalid, ref, "want vault:MOUNT/PATH, for example vault:secret/testudo/psk/web-db")
	}
	return location{ref, mount, path, or(r.Field, cred.DefaultField)}, nil
}

// Read implements cred.Source.
func (v *Vault) Read(ctx context.Context, ref string) (cred.Reading, error) {
	at, err := locate(ref)
	if err != nil {
		return cred.Reading{}, err
	}
	data, err := v.readVersion(ctx, at, 0)
	if err != nil {
		return cred.Reading{}, err
	}
	number, created := data.Data.Metadata.Version, data.Data.Metadata.CreatedTime
	newest, err := at.secret(data)
	if err != nil {
		return cred.Reading{}, err
	}
	r := cred.Reading{Candidates: []cred.Candidate{newest}}
	overlaps := false
	if end := created.Add(v.conf.Overlap); number > 1 && v.conf.Now().Before(end) {
		previous, err := v.readVersion(ctx, at, number-1)
		switch cred.KindOf(err) {
		case cred.NotFound: // deleted or destroyed: the rotation is over
		default:
			if err != nil { // half an answer is none: it would drop a key that is in force
				newest.Secret.Wipe()
				return cred.Reading{}, err
			}
			overlaps = true
			// A predecessor that cannot be used is no candidate; it may be what
			// the rotation was to repair.
			if c, err := at.secret(previous); err == nil {
				c.NotAfter = end
				r.Candidates = append(r.Candidates, c)
			}
		}
	}
	r.Version = version(number, created, overlaps)
	return r, nil
}

// Version implements cred.Source from the metadata of the secret, which
// does not hold it.
func (v *Vault) Version(ctx context.Context, ref string) (string, error) {
	at, err := locate(ref)
	if err != nil {
		return "", err
	}
	var m kvMetadata
	err = v.do(ctx, ref, func(ctx context.Context, c *api.Client) error {
		m = kvMetadata{}
		_, err := get(ctx, c, at.mount+"/metadata/"+at.path, nil, &m)
		return err
	})
	if err != nil {
		return "", err
	}
	number := m.Data.CurrentVersion
	newest, ok := m.Data.Versions[strconv.Itoa(number)]
	if !ok {
		return "no versions", nil // Read finds out what that means
	}
	previous, ok := m.Data.Versions[strconv.Itoa(number-1)]
	now := v.conf.Now()
	overlaps := ok && previous.alive(now) && now.Before(newest.CreatedTime.Add(v.conf.Overlap))
	s := version(number, newest.CreatedTime, overlaps)
	if !newest.alive(now) {
		s += " deleted" // by our clock; Read asks Vault
	}
	return s, nil
}

func (k kvVersion) alive(now time.Time) bool {
	if k.Destroyed {
		return false
	}
	end, err := time.Parse(time.RFC3339Nano, k.DeletionTime)
	return err != nil || now.Before(end)
}

// version names a state of a secret. The time tells a secret that was deleted
// with its metadata and made anew from the one before it.
func version(number int, created time.Time, overlaps bool) string {
	return fmt.Sprintf("%d@%d overlap=%t", number, created.UnixNano(), overlaps)
}

// readVersion gets version n, or the newest when n is 0.
func (v *Vault) readVersion(ctx context.Context, at location, n int) (*kvData, error) {
	query := map[string][]string{}
	if n > 0 {
		query["version"] = []string{strconv.Itoa(n)}
	}
	var d kvData
	err := v.do(ctx, at.ref, func(ctx context.Context, c *api.Client) error {
		d = kvData{}
		found, err := get(ctx, c, at.mount+"/data/"+at.path, query, &d)
		switch {
		case err != nil || !found:
			return err
		case d.Data.Metadata.Version < 1:
			return cred.Errorf(cred.Invalid, at.ref, "%q is not a KV version 2 mount", at.mount)
		case d.Data.Data == nil: // Vault says 404 to that
			return errNotVault
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if d.Data.Data == nil {
		return nil, cred.Errorf(cred.NotFound, at.ref, "version %d is deleted", d.Data.Metadata.Version)
	}
	return &d, nil
}

// secret takes the key out of an answer, and wipes the rest.
func (at location) secret(d *kvData) (cred.Candidate, error) {
	defer func() {
		for _, raw := range d.Data.Data {
			clear(raw)
		}
	}()
	number := d.Data.Metadata.Version
	raw, ok := d.Data.Data[at.field]
	if !ok {
		return cred.Candidate{}, cred.Errorf(cred.Invalid, at.ref, "version %d has no field %q", number, at.field)
	}
	var text string
	if json.Unmarshal(raw, &text) != nil { // its error may quote the value
		return cred.Candidate{}, cred.Errorf(cred.Invalid, at.ref, "field %q of version %d is not a string", at.field, number)
	}
	b := []byte(text)
	defer clear(b)
	secret, err := cred.DecodePSK(at.ref, b)
	return cred.Candidate{Secret: secret}, err
}

// get reads path into out. A 404 with an answer in it (a deleted version) is
// not an error; found tells it apart.
func get(ctx context.Context, c *api.Client, path string, query map[string][]string, out any) (found bool, err error) {
	resp, err := c.Logical().ReadRawWithDataWithContext(ctx, path, query)
	if resp != nil {
		defer resp.Body.Close()
	}
	if resp != nil && resp.Request != nil && !strings.HasSuffix(resp.Request.URL.Path, "/v1/"+path) {
		return false, errNotVault // redirected to something else: a login page
	}
	if status(err) == http.StatusNotFound && hasData(resp, out) {
		return false, nil
	}
	if err != nil {
		return false, withRetryAfter(resp, err)
	}
	return true, decode(resp, out)
}

// hasData reports whether a 404 holds a deleted version rather than nothing.
func hasData(resp *api.Response, out any) bool {
	d, ok := out.(*kvData)
	return ok && resp != nil && decode(resp, d) == nil && d.Data.Metadata.Version > 0
}

func decode(resp *api.Response, out any) error {
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	defer clear(body)
	if err != nil {
		return err
	}
	if json.Unmarshal(body, out) != nil { // its error may quote a value
		return errNotVault
	}
	return nil
}
