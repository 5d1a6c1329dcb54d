package chart

import (
	"encoding/json"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/util/yaml"
)

// moved returns the values of other charts, as paths, with what they are here.
func moved(t *testing.T) map[string]string {
	t.Helper()
	var sections map[string]map[string]string
	if err := yaml.Unmarshal([]byte(read(t, "files", "moved-values.yaml")), &sections); err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for section, keys := range sections {
		for key, here := range keys {
			all[strings.TrimPrefix(section+"."+key, ".")] = here
		}
	}
	return all
}

// valuesSchema are the values that the schema knows, as paths such as a.b and
// list[].c, and whether they are another chart's.
func valuesSchema(t *testing.T) map[string]bool {
	t.Helper()
	var schema map[string]any
	if err := json.Unmarshal([]byte(read(t, "values.schema.json")), &schema); err != nil {
		t.Fatal(err)
	}
	all := map[string]bool{}
	var walk func(path string, s map[string]any)
	walk = func(path string, s map[string]any) {
		if path != "" {
			all[path] = s["deprecated"] == true
		}
		properties, _ := s["properties"].(map[string]any)
		for name, p := range properties {
			walk(strings.TrimPrefix(path+"."+name, "."), p.(map[string]any))
		}
		if items, ok := s["items"].(map[string]any); ok {
			walk(path+"[]", items)
			branches, _ := items["allOf"].([]any)
			for _, b := range branches {
				walk(path+"[]", b.(map[string]any)["then"].(map[string]any))
			}
		}
	}
	walk("", schema)
	return all
}

// TestValuesOfOtherChartsAreExplained: each that the schema lets through, and
// all that it says about what to write instead is so.
func TestValuesOfOtherChartsAreExplained(t *testing.T) {
	schema := valuesSchema(t)
	var deprecated []string
	for path, is := range schema {
		if is {
			deprecated = append(deprecated, path)
		}
	}
	table := moved(t)
	slices.Sort(deprecated)
	if diff := cmp.Diff(deprecated, slices.Sorted(maps.Keys(table))); diff != "" {
		t.Errorf("deprecated in the schema (-), in files/moved-values.yaml (+):\n%s", diff)
	}
	var all []string
	for path, here := range table {
		for _, name := range valueName.FindAllString(here, -1) {
			if other, known := schema[name]; !known || other {
				t.Errorf("%s: there is no value %s", path, name)
			}
		}
		all = append(all, path+"=a")
	}
	_, err := template(t, "--set", strings.Join(all, ","))
	if err == nil {
		t.Fatal("no error")
	}
	for path, here := range table {
		if want := path + " is a value of another chart. Here it is " + here; !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q in it", err, want)
		}
	}
	// Any value will do.
	for _, value := range []string{"null", "false", "0", `""`, "[]", `{"a":1}`} {
		if _, err := template(t, "--set-json", "resources="+value); err == nil || !strings.Contains(err.Error(), "Here it is controller.resources and agent.resources") {
			t.Errorf("resources=%s: %v", value, err)
		}
	}
}

// notValues are other words in the tables' right columns.
var notValues = []string{"nfs.berth.storage", "hostpath.berth.storage", "local", "hostPath", "fsGroup", "restricted", "retain"}

// TestMappingTablesAreTrue holds the tables of docs/install.md, of values there
// and values here, against the schema: what is named on the right exists, and what
// is named on the left exists too or has an error that explains it.
func TestMappingTablesAreTrue(t *testing.T) {
	text, err := os.ReadFile(repository(t, "docs", "install.md"))
	if err != nil {
		t.Fatal(err)
	}
	schema, table := valuesSchema(t), moved(t)
	exists := func(name string) bool { other, known := schema[name]; return known && !other }
	named := map[string]bool{}
	rows, inTable := 0, false
	for line := range strings.Lines(string(text)) {
		if inTable = strings.HasPrefix(line, "| value there |") || inTable && strings.HasPrefix(line, "|"); !inTable {
			continue
		}
		cells := strings.Split(strings.Trim(line, "|\n "), " | ")
		if len(cells) != 2 || cells[0] == "value there" {
			continue
		}
		rows++
		there, here := quoted(cells[0]), quoted(cells[1])
		for _, name := range here {
			if parameters, ok := strings.CutPrefix(name, "parameters: "); ok {
				var found map[string]string
				if err := yaml.Unmarshal([]byte(parameters), &found); err != nil {
					t.Errorf("%s: %v", name, err)
				}
				for parameter := range found {
					if !exists("storageClasses[].parameters." + parameter) {
						t.Errorf("%s: there is no parameter %s", name, parameter)
					}
				}
			} else if isPath(name) && !exists(name) && !slices.Contains(notValues, name) {
				t.Errorf("%s: there is no value %s", cells[0], name)
			}
		}
		for _, name := range there {
			root, rest, _ := strings.Cut(name, ".")
			named[root], named[name] = true, true
			switch {
			case !isPath(name):
			case cells[1] == "the same":
				if !exists(name) {
					t.Errorf("%s is not the same here", name)
				}
			case strings.HasPrefix(cells[1], "the same below "):
				for _, section := range here {
					if !exists(section + "." + name) {
						t.Errorf("there is no %s.%s", section, name)
					}
				}
			case strings.HasPrefix(cells[1], "the same in "):
				if !exists(here[0] + "." + rest) {
					t.Errorf("there is no %s.%s", here[0], rest)
				}
			}
			if isPath(name) && !exists(name) && table[root] == "" && table[name] == "" {
				t.Errorf("%s does not exist: files/moved-values.yaml has to say what it is here", name)
			}
		}
	}
	if rows < 30 {
		t.Errorf("found %d rows", rows)
	}
	for path := range table {
		if !named[path] {
			t.Errorf("docs/install.md lacks %s", path)
		}
	}
}

var (
	backticks = regexp.MustCompile("`([^`]+)`")
	valuePath = regexp.MustCompile(`^[a-z][A-Za-z]*(\[\])?(\.[a-z][A-Za-z]*(\[\])?)*$`)
	valueName = regexp.MustCompile(`[a-z][A-Za-z]*(\.[a-z][A-Za-z]*)+|\b(pools|commonLabels|imagePullSecrets|storageClasses|defaultStorageClass)\b`)
)

func isPath(text string) bool { return valuePath.MatchString(text) }

// quoted returns what a cell of a table has in backticks, values without what they
// are set to, and those of which only the last part stands there as a whole.
func quoted(cell string) []string {
	var all []string
	for _, match := range backticks.FindAllStringSubmatch(cell, -1) {
		name := match[1]
		if value, _, set := strings.Cut(name, "="); set {
			name = value
		}
		if strings.HasPrefix(name, ".") && len(all) > 0 {
			root, _, _ := strings.Cut(all[0], ".")
			name = root + name
		}
		all = append(all, strings.TrimSuffix(name, ".*"))
	}
	return all
}
