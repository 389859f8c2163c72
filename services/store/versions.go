package store

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Named things in numbered versions, of some kind:
//
//	versions/KIND/NAME/NUMBER    a version, its number in ten digits
//	lastversion/KIND/NAME        the highest number that NAME ever had
//
// A number that was removed does not come again: what once went by it may still
// be meant.
const (
	versionPrefix     = "versions/"
	lastVersionPrefix = "lastversion/"
)

func versionKey(kind, name string, number int) string {
	return fmt.Sprintf("%s%s/%s/%010d", versionPrefix, kind, name, number)
}

// LastVersion is the highest number that a name ever had, 0 for none. Kinds and
// names hold no slash.
func (s *Store) LastVersion(ctx context.Context, kind, name string) (int, error) {
	number, _, err := s.lastVersion(ctx, kind, name)
	return number, err
}

func (s *Store) lastVersion(ctx context.Context, kind, name string) (number int, revision int64, err error) {
	key := lastVersionPrefix + kind + "/" + name
	value, revision, err := s.Get(ctx, key)
	if errors.Is(err, ErrNotFound) {
		return 0, 0, nil
	}
	if err != nil {
		return 0, 0, err
	}
	if number, err = strconv.Atoi(string(value)); err != nil {
		return 0, 0, fmt.Errorf("state store: %s: %w", key, err)
	}
	return number, revision, nil
}

// AddVersion adds a version of a name. It answers false, and has added nothing,
// unless number is the next one: LastVersion and 1.
func (s *Store) AddVersion(ctx context.Context, kind, name string, number int, value []byte) (added bool, err error) {
	if kind == "" || name == "" || strings.Contains(kind+name, "/") {
		return false, fmt.Errorf("state store: %q of the kind %q: %w", name, kind, ErrInvalid)
	}
	last, revision, err := s.lastVersion(ctx, kind, name)
	if err != nil || number != last+1 {
		return false, err
	}
	key := lastVersionPrefix + kind + "/" + name
	unchanged := IfAbsent(key)
	if revision > 0 {
		unchanged = IfRevision(key, revision)
	}
	err = s.Commit(ctx, unchanged, Put(key, []byte(strconv.Itoa(number))), Put(versionKey(kind, name, number), value))
	if errors.Is(err, ErrConflict) {
		return false, nil
	}
	return err == nil, err
}

// RemoveVersion removes a version; it answers false when there is none.
func (s *Store) RemoveVersion(ctx context.Context, kind, name string, number int) (removed bool, err error) {
	key := versionKey(kind, name, number)
	err = s.Commit(ctx, IfPresent(key), Delete(key))
	if errors.Is(err, ErrConflict) {
		return false, nil
	}
	return err == nil, err
}

// Versions reads all versions of one name, or of all names of a kind for "": by
// name, then number.
func (s *Store) Versions(ctx context.Context, kind, name string) (map[string]map[int][]byte, error) {
	prefix := versionPrefix + kind + "/"
	if name != "" {
		prefix += name + "/"
	}
	all, err := s.List(ctx, prefix)
	if err != nil {
		return nil, err
	}
	versions := map[string]map[int][]byte{}
	for _, kv := range all {
		name, number, ok := strings.Cut(strings.TrimPrefix(kv.Key, versionPrefix+kind+"/"), "/")
		n, err := strconv.Atoi(number)
		if !ok || err != nil {
			return nil, fmt.Errorf("state store: the key %s: %w", kv.Key, ErrInvalid)
		}
		if versions[name] == nil {
			versions[name] = map[int][]byte{}
		}
		versions[name][n] = kv.Value
	}
	return versions, nil
}
