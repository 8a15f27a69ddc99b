package vault

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/hashicorp/vault/api"
	"github.com/testudo-ipsec/testudo/keymgr/cred"
)

// errNotVault is an answer that Vault would not give: a proxy's page, or JSON
// of another shape. What is in it is not repeated anywhere.
var errNotVault = errors.New("the answer is not Vault's (is there a proxy in between?)")

// fate is what an answer means for the next step.
type fate int

const (
	answered fate = iota // Vault said what it had to say: yes, no, not found
	again                // Vault is well but asks to be asked again (412)
	limited              // a rate limit (429)
	failed               // Vault is away, sealed, overloaded, or not Vault
	unasked              // the caller left, or a file of ours is missing: nothing is known
)

// judge sorts the result of one request.
func judge(err error) fate {
	if err == nil {
		return answered
	}
	if _, ok := errors.AsType[*cred.Error](err); ok || errors.Is(err, context.Canceled) {
		return unasked
	}
	re, ok := errors.AsType[*api.ResponseError](err)
	if !ok {
		return failed // the network, a deadline, or errNotVault
	}
	switch {
	case re.StatusCode == http.StatusTooManyRequests:
		return limited
	case re.StatusCode == http.StatusPreconditionFailed:
		return again
	case re.RawError, re.StatusCode >= 500, re.StatusCode == 472, re.StatusCode == 473:
		// 472 and 473 are standbys of Enterprise that cannot serve the request.
		return failed
	}
	return answered
}

// status is the HTTP status of an error answer, or 0.
func status(err error) int {
	if re, ok := errors.AsType[*api.ResponseError](err); ok && !re.RawError {
		return re.StatusCode
	}
	return 0
}

// brief says in a few words what Vault answered, in Vault's terms but not in
// its words.
func brief(err error) string {
	re, ok := errors.AsType[*api.ResponseError](err)
	if !ok {
		return err.Error() // net/http names the URL and what failed
	}
	text := fmt.Sprintf("Vault answered %d", re.StatusCode)
	switch {
	case re.RawError:
		text += ": " + errNotVault.Error()
	case re.StatusCode == http.StatusServiceUnavailable:
		text += " (sealed, or not active yet)"
	case re.StatusCode == http.StatusTooManyRequests:
		text += " (a rate limit quota)"
	}
	return text
}

// describe adds to brief the words of an answer that is Vault's considered own
// (permission denied, invalid SecretID): one line, without the token or SecretID
// that was used, in case something echoes it.
func describe(err error, used string) string {
	text := brief(err)
	re, ok := errors.AsType[*api.ResponseError](err)
	if !ok || judge(err) != answered || len(re.Errors) == 0 {
		return text
	}
	said := strings.Join(strings.Fields(strings.Join(re.Errors, "; ")), " ")
	if used != "" {
		said = strings.ReplaceAll(said, used, "[redacted]")
	}
	return text + ": " + said[:min(len(said), 200)]
}

// kvAdvice says which permission is missing, for KV version 2.
const kvAdvice = ": the token's policies must allow read on the path, with /data/ after the mount"

// credError turns the result of a question about ref into an error of cred.
func credError(ref string, err error, used string) error {
	if e, ok := errors.AsType[*cred.Error](err); ok {
		if e.Ref == "" {
			return &cred.Error{Kind: e.Kind, Ref: ref, Why: e.Why, Err: e.Err}
		}
		return e
	}
	out := &cred.Error{Kind: cred.Unavailable, Ref: ref, Why: describe(err, used)}
	// Of the cause, only this is worth unwrapping: the API's errors hold
	// requests and bodies, and stay inside.
	for _, cause := range []error{context.Canceled, context.DeadlineExceeded} {
		if errors.Is(err, cause) {
			out.Err = cause
		}
	}
	if judge(err) != answered {
		return out
	}
	switch status(err) {
	case http.StatusForbidden, http.StatusUnauthorized:
		out.Kind = cred.Denied
		out.Why += kvAdvice
	case http.StatusNotFound:
		re, _ := errors.AsType[*api.ResponseError](err)
		if len(re.Errors) == 0 {
			out.Kind = cred.NotFound
		} else { // "no handler for route": the mount is not there
			out.Kind = cred.Invalid
		}
	default:
		out.Kind = cred.Invalid
	}
	return out
}
