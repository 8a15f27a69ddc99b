package feedclient

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"google.golang.org/protobuf/proto"

	"github.com/testudo-ipsec/testudo/ipsec"
	policyv1 "github.com/testudo-ipsec/testudo/proto/gen/testudo/policy/v1"
)

// The last-known-good file is one delta from nothing, behind this line and the
// SHA-256 of the delta. Without the checksum a damaged rule that still parses
// would be enforced, and never be sent again: its version says that it is
// the right one.
const fileHeader = "testudo policy 1\n"

func seal(b []byte) []byte {
	sum := sha256.Sum256(b)
	return append(append([]byte(fileHeader), sum[:]...), b...)
}

func unseal(b []byte) ([]byte, error) {
	b, ok := bytes.CutPrefix(b, []byte(fileHeader))
	if !ok || len(b) < sha256.Size {
		return nil, fmt.Errorf("got a file that does not begin with %q and a checksum", fileHeader)
	}
	if sum := sha256.Sum256(b[sha256.Size:]); !bytes.Equal(sum[:], b[:sha256.Size]) {
		return nil, errors.New("the file is damaged: its checksum does not match")
	}
	return b[sha256.Size:], nil
}

// loadFile puts the policy of the file in force, if there is one.
func (c *Client) loadFile(ctx context.Context) error {
	if c.File == "" {
		return nil
	}
	b, err := os.ReadFile(c.File)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	next, nodes, err := c.state.read(b)
	if err != nil {
		return err
	}
	if err := c.use(ctx, next, nodes); err != nil {
		return err
	}
	c.fromFile.Store(true)
	c.Log.Info("last-known-good policy in force", "file", c.File, "revision", next.store.Revision)
	return nil
}

// ReadFile is the policy of a node in a last-known-good file; nil if the file says
// nothing of the node.
func ReadFile(path, node string) (*ipsec.NodePolicy, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	s, _, err := newState(node).read(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return s.policy(node), nil
}

// read is the state that a file holds, and the nodes in it.
func (s *state) read(b []byte) (*state, []string, error) {
	b, err := unseal(b)
	if err != nil {
		return nil, nil, err
	}
	d := &policyv1.SubscribeResponse{}
	if err := proto.Unmarshal(b, d); err != nil {
		return nil, nil, err
	}
	return s.with(d)
}

// saveFile replaces the file in one step, on the disk before it is renamed.
func (c *Client) saveFile() error {
	if c.File == "" {
		return nil
	}
	b, err := proto.Marshal(c.state.snapshot())
	if err != nil {
		return err
	}
	// One name, so that what a crash leaves behind is overwritten.
	tmp := c.File + ".new"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(seal(b))
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(tmp, c.File)
	}
	if err != nil {
		_ = os.Remove(tmp)
		return err
	}
	dir, err := os.Open(filepath.Dir(c.File))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
