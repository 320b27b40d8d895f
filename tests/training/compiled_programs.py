"""A small program in each compiled language, for the recipe's tests."""

GO = """package shop

import "strings"

/* A Shop sells things,
one after another. */
type Shop struct {
	Name string
	Rows []int
}

// Total adds the prices up.
func (s *Shop) Total(start int) (int, error) {
	sum := start
	for _, row := range s.Rows {
		sum += row
	}
	s.Name = strings.ToUpper(s.Name)
	return sum, nil
}
"""
RUST = """use std::fmt;

/* A shop sells things,
one after another. */
pub struct Shop {
    name: String,
    rows: Vec<i32>,
}

impl Shop {
    pub fn total(&self, start: i32) -> i32 {
        let mut sum = start;
        for row in self.rows.iter() {
            sum += row;
        }
        println!("{} é", self.name);
        return i32::max(sum, 0);
    }
}
"""
JAVA = """package shop;

import java.util.List;

/** A shop sells things,
 * one after another. */
public class Shop {
    private final List<Integer> rows;

    Shop(List<Integer> rows) {
        this.rows = rows;
        check(rows, 1);
    }

    int total(int start) {
        int sum = start;
        for (int row : rows) {
            sum += row;
        }
        return Math.max(sum, 0);
    }
}
"""
C = """#include "shop.h"
#include <stdio.h>

/* A shop sells things,
 * one after another. */
struct shop {
    char *name;
    int rows[4];
};

static int total(struct shop *shop, int start)
{
    int sum = start;
    for (int i = 0; i < 4; i++)
        sum += shop->rows[i];
    *shop->name = 'a';
    printf("%d %s\\n", sum, shop->name);
    return sum + 1;
}
"""
CPP = """#ifndef SHOP_H
#define SHOP_H
#include <vector>

/* A shop sells things,
 * one after another. */
namespace shop {

class Shop {
public:
    int total(int start) const {
        int sum = start;
        for (int row : rows_)
            sum += row;
        auto twice = [](int value) { return value * 2; };
        return twice(sum);
    }

private:
    std::vector<int> rows_;
};

}  // namespace shop
#endif
"""
PROGRAMS = {"go": GO, "rust": RUST, "java": JAVA, "c": C, "cpp": CPP}
