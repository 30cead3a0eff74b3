"""What a user of Breakwater writes: contracts, targets, SQL functions.

`ecommerce` is the reference contract. Another domain needs its own module in this form, or in any
package that can be imported, and three lines of settings: `[contract] type`, `key`, `event_time`.
"""
